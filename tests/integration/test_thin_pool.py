"""The watch of a thin pool, over a real SSH connection to a hypervisor whose `lvs` is played."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dispatcher import agent_bundle
from dispatcher.clock import ManualClock
from dispatcher.core.model import Reason
from dispatcher.core.pool import STALE_S, Pool
from dispatcher.core.views import HostView
from dispatcher.executors.ssh import SshExecutor
from dispatcher.fleet import Fleet
from dispatcher.fleet_view import pools_of
from dispatcher.inventory import parse_inventory
from dispatcher.store.base import StoreError
from dispatcher.store.sqlite import SqliteStore
from dispatcher.thin_pool import _ARGUMENTS, TRIM_AGAIN_S, PoolWatch
from tests.sshd import Farm, Sshd, farm

__all__ = ["farm"]

KEY = "hv1:vg0/thin"
_INVENTORY = """
hosts:
  - {{name: a, address: 10.0.0.1, disk: {{thin_pool: {pool}}}}}
  - {{name: b, address: 10.0.0.2, disk: {{fstrim: off, thin_pool: {pool}}}}}
  - {{name: c, address: 10.0.0.3}}
hypervisors:
  - {{name: hv1, address: 127.0.0.1, port: {port}, identity_file: {key}, host_key: {host_key}}}
"""


@dataclass
class Hypervisor:
    """Its `lvs` says what lies in `answer`, and writes down how it was called."""

    server: Sshd
    programs: Path

    def says(self, data: str, metadata: str = "10.00") -> None:
        volume = {"lv_size": "1099511627776", "data_percent": data, "metadata_percent": metadata}
        text = json.dumps({"report": [{"lv": [volume]}], "log": []})
        fresh = self.programs / "answer.new"
        fresh.write_text(text)
        fresh.replace(self.programs / "answer")

    def script(self, name: str, *lines: str) -> None:
        file = self.programs / name
        file.write_text("\n".join(("#!/bin/sh", *lines, "")))
        file.chmod(0o755)

    def called(self) -> list[list[str]]:
        return [shlex.split(line) for line in (self.programs / "called").read_text().splitlines()]


@dataclass
class World:
    hypervisor: Hypervisor
    store: SqliteStore
    fleet: Fleet
    clock: ManualClock
    watch: PoolWatch
    trims: list[tuple[str, str]] = field(default_factory=list)

    @property
    def pool(self) -> Pool:
        return pools_of(self.fleet.inventory)[KEY]

    def view(self, host: str) -> HostView:
        return next(view for view in self.fleet.host_views() if view.name == host)

    async def events(self) -> list[str]:
        return [event.kind for event in await self.store.events()]


@pytest.fixture
async def world(tmp_path: Path, farm: Farm) -> AsyncIterator[World]:
    programs = tmp_path / "programs"
    programs.mkdir()
    hypervisor = Hypervisor(farm.start("hv1", programs=programs), programs)
    here = shlex.quote(str(programs))
    hypervisor.script("lvs", f'echo "$*" >> {here}/called', f"cat {here}/answer")
    server = hypervisor.server
    inventory = parse_inventory(
        _INVENTORY.format(
            port=server.port, key=server.client_key, host_key=server.host_key,
            pool="{host: hv1, vg: vg0, pool: thin, high_watermark: 0.85}",
        ),
        "inventory.yaml", {},
    )  # fmt: skip
    clock = ManualClock()
    store = await SqliteStore.open(tmp_path / "cosma.db", clock)
    bundle = agent_bundle.build()
    fleet = Fleet.of(inventory, lambda host: SshExecutor.connect_to(host, bundle), clock=clock)
    made = World(hypervisor, store, fleet, clock, None)  # type: ignore[arg-type]
    made.watch = PoolWatch(
        store, fleet, clock, want_trim=lambda *one: made.trims.append(one), every_s=0.01, read_s=30
    )
    yield made
    await fleet.close()
    await store.close()


async def turns(world: World, until: str, times: int = 1) -> None:
    """Let the watch run until so many events of this kind are in the log."""
    seen = asyncio.Event()

    def changed() -> None:
        seen.set()

    watching = asyncio.create_task(world.watch.run(changed))
    try:
        async with asyncio.timeout(60):
            while (await world.events()).count(until) < times:
                await seen.wait()
                seen.clear()
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_a_full_pool_shuts_its_hosts_and_forces_trims_until_it_has_room(world: World) -> None:
    assert world.view("a").storage == (
        Reason.PROBE_STALE,
        f"its disk lies in the thin pool {KEY}, which is being read for the first time",
    )
    world.hypervisor.says("91.30", "12.00")
    await turns(world, until="trims_forced")
    for host in ("a", "b"):
        refused = world.view(host).storage
        assert refused is not None and refused[0] is Reason.POOL_FULL
        assert "91.3% full of data and 12.0% of metadata (high watermark 85.0%" in refused[1]
    assert world.view("c").storage is None
    assert world.trims == [("a", "auto")]  # b has its trims switched off
    assert (await world.store.thin_pools())[KEY].shut

    world.hypervisor.says("84.50")  # below the mark, but not by enough
    assert (await world.watch.read(world.pool)).shut
    world.hypervisor.says("83.90")
    await turns(world, until="thin_pool_opened")
    assert world.view("a").storage is None
    assert world.trims == [("a", "auto")]
    events = await world.store.events()
    assert [event.kind for event in events] == [
        "thin_pool_shut", "trims_forced", "thin_pool_opened",
    ]  # fmt: skip
    assert events[0].payload["data"] == pytest.approx(0.913)


async def test_metadata_shuts_it_too_and_trims_are_forced_again_only_after_a_while(
    world: World,
) -> None:
    world.hypervisor.says("20.00", "85.00")
    await turns(world, until="trims_forced")
    await world.watch._force_trims(world.pool)
    assert len(world.trims) == 1
    world.clock.advance(TRIM_AGAIN_S)
    await world.watch._force_trims(world.pool)
    assert len(world.trims) == 2


async def test_a_pool_that_cannot_be_read_counts_until_its_figures_are_stale(world: World) -> None:
    world.hypervisor.says("30.00")
    await world.watch.read(world.pool)
    world.hypervisor.script(
        "lvs", 'echo "  Failed to find logical volume \\"vg0/thin\\"" >&2', "exit 5"
    )
    world.clock.advance(STALE_S)
    await world.watch.read(world.pool)
    assert world.view("a").storage is None
    world.clock.advance(1)
    refused = world.view("a").storage
    assert refused is not None and refused[0] is Reason.POOL_UNKNOWN
    for words in ("limit 120 s", "30.0% full", "Failed to find logical volume", "hv1"):
        assert words in refused[1]


async def test_a_hypervisor_that_hangs_is_not_waited_for(world: World) -> None:
    world.hypervisor.says("30.00")
    await world.watch.read(world.pool)  # connected: only the command hangs
    world.hypervisor.script("lvs", "exec sleep 600")
    world.watch._read_s = 0.5
    state = await world.watch.read(world.pool)
    assert "no answer to" in state.message
    assert state.figures is not None


async def test_a_host_key_that_is_not_the_pinned_one_is_refused(world: World) -> None:
    (hypervisor,) = world.fleet.inventory.hypervisors
    other = hypervisor.model_copy(update={"host_key": f"SHA256:{'A' * 43}"})
    world.fleet.inventory = world.fleet.inventory.model_copy(update={"hypervisors": (other,)})
    state = await world.watch.read(world.pool)
    assert "host key does not match" in state.message
    assert not (world.hypervisor.programs / "called").exists()


async def test_a_user_who_is_not_root_asks_for_what_the_sudoers_line_allows(world: World) -> None:
    here = shlex.quote(str(world.hypervisor.programs))
    world.hypervisor.script("id", "echo 1000")
    world.hypervisor.script("sudo", f'echo "$*" > {here}/sudo-called', "shift", 'exec "$@"')
    world.hypervisor.says("30.00")
    assert (await world.watch.read(world.pool)).message == ""
    asked = (world.hypervisor.programs / "sudo-called").read_text().split()
    assert asked == ["-n", "lvs", *_ARGUMENTS, "vg0/thin"]
    lines = Path("systemd/cosma-thin-pool.sudoers").read_text().splitlines()
    (rule,) = (line for line in lines if not line.startswith("#"))
    allowed = re.sub(r"\\(.)", r"\1", rule.partition("NOPASSWD: ")[2]).split()
    assert [Path(allowed[0]).name, *allowed[1:]] == asked[1:]


async def test_what_fails_here_ends_the_watch_as_what_it_is(world: World) -> None:
    world.hypervisor.says("30.00")
    await world.store.close()
    world.fleet.pools = {}
    with pytest.raises(StoreError, match="not open"):
        await world.watch.run(lambda: None)


async def test_the_last_dispatchers_gate_is_remembered(world: World) -> None:
    world.hypervisor.says("91.00")
    await turns(world, until="trims_forced")
    world.fleet.pools = {}
    world.hypervisor.says("84.50")
    again = PoolWatch(
        world.store, world.fleet, world.clock, want_trim=lambda *_: None, every_s=0.01
    )
    world.watch = again
    await turns(world, until="trims_forced", times=2)
    assert world.fleet.pools[KEY].shut
    assert (await world.events()).count("thin_pool_shut") == 1
