"""Watches the thin pools below virtual hosts' disks: asks `lvs` on their hypervisors, lets the
fleet know, and has the hosts' disks trimmed when a pool is at its watermark."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from dispatcher.clock import Clock
from dispatcher.core.model import Reason
from dispatcher.core.pool import Pool, PoolState, figures_of, shuts
from dispatcher.errors import HostError
from dispatcher.executors.ssh import ssh_target
from dispatcher.fleet import Fleet
from dispatcher.fleet_view import pools_of
from dispatcher.inventory_model import Hypervisor, InventoryHost
from dispatcher.store.base import Store
from dispatcher.transport.base import Transport
from dispatcher.transport.ssh import SshTransport

log = logging.getLogger("cosma")

READ_S = 20.0  # for a hypervisor to answer, connecting included
TRIM_AGAIN_S = 600.0  # between two forced trims while a pool stays shut

# As root, else by the one command that systemd/cosma-thin-pool.sudoers allows. A login by SSH often
# has no sbin in its PATH; numbers have a point in the C locale.
_LVS = """
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin LC_ALL=C
export PATH LC_ALL
[ "$(id -u)" -eq 0 ] || exec sudo -n lvs "$@"
exec lvs "$@"
"""
_FIELDS = "lv_size,data_percent,metadata_percent"
_ARGUMENTS = ("--reportformat", "json", "--units", "b", "--nosuffix", "-o", _FIELDS)

WantTrim = Callable[[str, str], None]  # of a host's disk, by that mode, as soon as may be
Connect = Callable[[InventoryHost | Hypervisor], Transport]


def connect_by_ssh(hypervisor: InventoryHost | Hypervisor) -> Transport:
    return SshTransport(ssh_target(hypervisor))


class PoolWatch:
    """One instance for each dispatcher; `run` is a service of its loop."""

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        clock: Clock,
        *,
        want_trim: WantTrim,
        every_s: float,
        connect: Connect = connect_by_ssh,
        read_s: float = READ_S,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._clock = clock
        self._want_trim = want_trim
        self._every_s = every_s
        self._connect = connect
        self._read_s = read_s
        self._links: dict[str, tuple[InventoryHost | Hypervisor, Transport]] = {}
        self._reading: set[str] = set()
        self._trimmed_at: dict[str, float] = {}
        self._shut_before: dict[str, bool] = {}  # as the last dispatcher left them

    async def run(self, changed: Callable[[], None]) -> None:
        """For ever. `changed` is called when a pool's state may lead to another decision."""
        known = await self._store.thin_pools()
        self._shut_before = {key: state.shut for key, state in known.items()}
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    for pool in pools_of(self._fleet.inventory).values():
                        if pool.key not in self._reading:  # a slow one delays no other
                            tasks.create_task(self._follow(pool, changed))
                    await asyncio.sleep(self._every_s)
        except BaseExceptionGroup as failed:  # the database's, say: told as what it is
            raise failed.exceptions[0] from None
        finally:
            await asyncio.gather(*(link.close() for _, link in self._links.values()))

    async def _follow(self, pool: Pool, changed: Callable[[], None]) -> None:
        self._reading.add(pool.key)
        try:
            await self.read(pool)
        finally:
            self._reading.discard(pool.key)
        changed()
        await self._force_trims(pool)

    async def read(self, pool: Pool) -> PoolState:
        """Never raises for what the hypervisor does: it becomes the pool's state."""
        before = self._fleet.pools.get(pool.key) or PoolState(
            key=pool.key, shut=self._shut_before.get(pool.key, False)
        )
        asked = self._clock.monotonic()
        try:
            figures = figures_of(await self._ask(pool))
        except HostError as error:
            after = replace(before, message=error.line)
        except ValueError as error:
            after = replace(before, message=f"{pool.hypervisor}: {error}")
        else:
            shut = shuts(figures, pool.high_watermark, before=before.shut)
            after = PoolState(key=pool.key, figures=figures, read_at=asked, shut=shut)
        self._fleet.pools = {**self._fleet.pools, pool.key: after}
        await self._tell(before, after)
        return after

    async def _ask(self, pool: Pool) -> bytes:
        argv = ["sh", "-c", _LVS, "lvs", *_ARGUMENTS, f"{pool.vg}/{pool.name}"]
        link = await self._link(pool.hypervisor)
        done = await link.run(argv, timeout_s=self._read_s)
        if done.returncode == 0:
            return done.stdout
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no output"]
        raise HostError(
            Reason.POOL_UNKNOWN,
            f"lvs ended with {done.returncode}",
            where=pool.hypervisor,
            why=lines[-1].strip()[:300],
            fix="Check `thin_pool:` in the inventory; a user other than root needs "
            "systemd/cosma-thin-pool.sudoers there",
        )

    async def _link(self, name: str) -> Transport:
        """One connection for all pools of a hypervisor; another one once the inventory says so."""
        at = self._fleet.inventory.hypervisor(name)
        known, link = self._links.get(name, (None, None))
        if link is None or known != at:
            self._links[name] = at, (fresh := self._connect(at))
            if link is not None:
                await link.close()
            return fresh
        return link

    async def _tell(self, before: PoolState, after: PoolState) -> None:
        """Write it down, with the wall clock's time; what changed is an event."""
        age = self._clock.monotonic() - after.read_at if after.read_at is not None else 0.0
        read_at = self._clock.now() - age if after.read_at is not None else None
        await self._store.save_thin_pool(replace(after, read_at=read_at))
        if after.message and after.message != before.message:
            log.warning("thin pool %s cannot be read: %s", after.key, after.message)
        if after.shut == before.shut or after.figures is None:
            return
        kind = "thin_pool_shut" if after.shut else "thin_pool_opened"
        log.warning(
            "thin pool %s is %s: %s", after.key, after.figures.words,
            "no new work on its hosts, their disks are trimmed" if after.shut else "work goes on",
        )  # fmt: skip
        await self._store.record_event(
            kind,
            payload={
                "pool": after.key,
                "data": round(after.figures.data, 4),
                "metadata": round(after.figures.metadata, 4),
                "bytes": after.figures.bytes,
            },
        )

    # --- forced trims ---

    async def _force_trims(self, pool: Pool) -> None:
        """Of all hosts in a pool that is shut, once in a while; later readings say what it gave."""
        last = self._trimmed_at.get(pool.key, float("-inf"))
        now = self._clock.monotonic()
        if not self._fleet.pools[pool.key].shut or now < last + TRIM_AGAIN_S:
            return
        self._trimmed_at[pool.key] = now
        states = [self._fleet.state(host) for host in pool.hosts]
        hosts = [state.host for state in states if state and state.host.disk.fstrim != "off"]
        for host in hosts:
            self._want_trim(host.name, host.disk.fstrim)
        await self._store.record_event(
            "trims_forced", payload={"pool": pool.key, "hosts": [host.name for host in hosts]}
        )
