"""The dispatcher's side of a handoff, between two real sshd hosts."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from dispatcher import agent_bundle, fsck
from dispatcher.clock import SystemClock
from dispatcher.core import effects as fx
from dispatcher.core import events as ev
from dispatcher.core import handoff as core_handoff
from dispatcher.core import model as m
from dispatcher.core.events import Event
from dispatcher.core.machine import step
from dispatcher.core.model import Job, Reason, Stage
from dispatcher.core.need import Needs
from dispatcher.embedded import EmbeddedHost, EmbeddedHosts
from dispatcher.executors.ssh import SshExecutor
from dispatcher.file_expiry import GivingBack
from dispatcher.fleet import Fleet
from dispatcher.handoff import Handoff
from dispatcher.inventory import find_inventory
from dispatcher.inventory_model import Inventory
from dispatcher.jobspec import JobSpecs
from dispatcher.provenance import Provenance
from dispatcher.reclaim import Reclaimer
from dispatcher.store.sqlite import SqliteStore
from dispatcher.trims import Trims
from tests.agent_client import script
from tests.contract.store_builders import JOB, advance, fill
from worker_agent.exclusive import alone
from worker_agent.protocol import Artifact, ExitRecord, StageOutcome
from worker_agent.stages.api import artifact, write_json

MODEL_BYTES = 2_000_000
FRAMES = 30


@dataclass(slots=True)
class World:
    """One job that has finished ColmapReconstruction on host-1 and is assigned to host-2."""

    hosts: EmbeddedHosts
    fleet: Fleet
    store: SqliteStore
    handoff: Handoff
    reclaimer: Reclaimer
    job: Job

    def run_dir(self, host: EmbeddedHost) -> Path:
        return host.work_dir / self.job.acquisition / self.job.id

    @property
    def old(self) -> Path:
        return self.run_dir(self.hosts.hosts[0])

    @property
    def new(self) -> Path:
        return self.run_dir(self.hosts.hosts[1])

    async def hand_over(self) -> Event:
        return await self.handoff.hand_over(self.job, "host-2", "host-1", "7")

    async def commit(self, event: Event) -> None:
        self.job = (await advance(self.store, self.job, event)).job


def make(root: Path) -> dict[Stage, tuple[Artifact, ...]]:
    """What stages leave in a run directory."""
    for folder in ("input", "frames", "sfm", "output"):
        (root / folder).mkdir(parents=True)
    (root / "input" / "GX010001.MP4").write_bytes(b"video")
    rows = []
    for number in range(FRAMES):
        frame = root / "frames" / f"f{number:06d}.jpg"
        frame.write_bytes(random.Random(number).randbytes(20_000))
        row = artifact(root, frame, "frame")
        known = {"bytes": row.bytes, "sha256": row.sha256}
        rows.append({"name": frame.name, "clip": "GX010001.MP4", **known})
    clips = [{"name": "GX010001.MP4", "shown": FRAMES, "decoded": FRAMES}]
    write_json(root / "frames" / "frames.json", {"clips": clips, "frames": rows})
    (root / "sfm" / "model.bin").write_bytes(random.Random(1).randbytes(MODEL_BYTES))
    for name in ("validation", "metadata", "manifest"):
        (root / "output" / f"{name}.json").write_text(json.dumps({"name": name}))
    write_json(root / "output" / ".checkpoint.json", {"job_id": "other"})
    paths = {
        Stage.VALIDATION: ("validation", "output/validation.json"),
        Stage.FRAME_EXTRACTION: ("frames", "frames/frames.json"),
        Stage.METADATA_EXTRACTION: ("metadata", "output/metadata.json"),
        Stage.MANIFEST_GENERATION: ("manifest", "output/manifest.json"),
        Stage.COLMAP_RECONSTRUCTION: ("sfm_model", "sfm/model.bin"),
    }
    return {at: (artifact(root, root / path, kind),) for at, (kind, path) in paths.items()}


async def play(store: SqliteStore, job: Job, made: dict[Stage, tuple[Artifact, ...]]) -> Job:
    """Through the machine and the store, as if the stages had run on host-1."""
    for stage, files in made.items():
        assert job.stage is stage
        promise = m.Reservation(job=job.id, attempt=job.attempt + 1, host="host-1", slot="sfm")
        number = promise.attempt
        job = (
            await advance(
                store,
                job,
                ev.StagePlaced(at=1.0, reservation=promise),
                ev.AttemptStarted(at=2.0, attempt=number),
            )
        ).job
        record = ExitRecord(
            attempt=number, stage=stage, returncode=0, signal=None, cause="exited",
            outcome=StageOutcome(ok=True, artifacts=files), started_at=1.0, ended_at=2.0,
            wall_s=30.0, cpu_s=1.0, peak_rss_mib=1.0, peak_vram_mib=None, events_bytes=0,
            log_bytes=0, boot_id="b",
        )  # fmt: skip
        await store.finish_attempt(job.id, number, record)
        job = (await advance(store, job, ev.AttemptSucceeded(at=3.0, attempt=number))).job
    return job


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    with EmbeddedHosts(2, tmp_path / "hosts") as hosts:
        store = await SqliteStore.open(tmp_path / "cosma.db")
        bundle = agent_bundle.build()
        text = yaml.safe_load(hosts.inventory.read_text())
        text["defaults"]["disk"] = {"fstrim": "off"}
        hosts.inventory.write_text(yaml.safe_dump(text))
        inventory = find_inventory(hosts.inventory)
        clock = SystemClock()
        fleet = Fleet.of(inventory, lambda host: SshExecutor.connect_to(host, bundle), clock=clock)
        specs = JobSpecs(store, lambda _: None)
        job = await fill(store, dataclasses.replace(JOB, input_bytes=5))
        job = (
            await advance(
                store, job, ev.HostAssigned(at=0.0, host="host-1"), ev.InputsReady(at=0.0)
            )
        ).job
        made = make(hosts.hosts[0].work_dir / job.acquisition / job.id)
        job = await play(store, job, made)
        job = (await advance(store, job, ev.HostAssigned(at=9.0, host="host-2"))).job
        assert (job.origin, job.stage) == ("host-1", Stage.TRAINING)
        handoff = Handoff(fleet=fleet, specs=specs, clock=clock, epoch=0, needs=Needs)
        reclaimer = Reclaimer(
            fleet=fleet,
            specs=specs,
            giving_back=GivingBack(fleet, specs, clock),
            trims=Trims(fleet, store, clock),
            provenance=Provenance(fleet, specs),
            clock=clock,
            epoch=0,
        )
        yield World(hosts, fleet, store, handoff, reclaimer, job)
        await fleet.close()
        await store.close()


async def test_straight_from_host_to_host_with_a_key_that_is_gone_afterwards(world: World) -> None:
    keys = world.hosts.hosts[0].work_dir.parent / "authorized_keys"
    before = keys.read_bytes()
    over = await world.hand_over()
    assert isinstance(over, ev.HandedOver), over
    assert (over.stage, over.source, over.route) == (Stage.TRAINING, "host-1", "direct")
    assert (over.note, over.files) == ("", 5 + FRAMES)
    assert (world.new / "sfm/model.bin").read_bytes() == (world.old / "sfm/model.bin").read_bytes()
    assert {row.host for row in await world.store.artifacts(job=world.job.id)} == {"host-2"}
    assert keys.read_bytes() == before
    again = await world.hand_over()
    assert isinstance(again, ev.HandedOver) and again.files == again.bytes == 0


@pytest.mark.parametrize("why", ["takes no key for a transfer", "No route to host"])
async def test_relayed_where_no_key_can_be_used(world: World, tmp_path: Path, why: str) -> None:
    inventory = yaml.safe_load(world.hosts.inventory.read_text())
    if why.startswith("takes no key"):
        inventory["hosts"][0]["transfer"] = {"authorized_keys": "off"}
    else:
        programs = tmp_path / "bin"
        programs.mkdir()
        script(programs / "ssh", f"#!/bin/sh\necho 'ssh: connect to host: {why}' >&2\nexit 255\n")
        python = inventory["defaults"]["python"]
        text = f'#!/bin/sh\nPATH={programs}:$PATH exec {python} "$@"\n'
        inventory["hosts"][1]["python"] = str(script(tmp_path / "python", text))
    world.hosts.inventory.write_text(yaml.safe_dump(inventory))
    bundle = agent_bundle.build()
    await world.fleet.reload(
        find_inventory(world.hosts.inventory), lambda host: SshExecutor.connect_to(host, bundle)
    )
    over = await world.hand_over()
    assert isinstance(over, ev.HandedOver), over
    assert (over.stage, over.route, over.files) == (Stage.TRAINING, "relayed", 5 + FRAMES)
    assert why in over.note
    assert (world.new / "sfm/model.bin").read_bytes() == (world.old / "sfm/model.bin").read_bytes()


async def test_the_old_copy_goes_with_proof_and_keeps_its_records(world: World) -> None:
    records = world.old / "attempts" / "5" / "exit.json"
    records.parent.mkdir(parents=True)
    records.write_text("{}")
    scratch = world.old / "sfm" / "database.db"
    scratch.write_bytes(b"features")
    early = await world.reclaimer.leftovers(world.job, "host-1", "8")
    assert isinstance(early, ev.ReclaimFailed) and "come back" in early.message
    await world.commit(await world.hand_over())
    assert world.job.leftovers == ("host-1",)
    gone = await world.reclaimer.leftovers(world.job, "host-1", "8")
    assert isinstance(gone, ev.LeftoversReclaimed), gone
    assert gone.removed_bytes > MODEL_BYTES + FRAMES * 20_000
    assert records.exists() and not scratch.exists()
    assert not (world.old / "frames").exists() and not (world.old / "input/GX010001.MP4").exists()
    assert (world.new / "frames" / "frames.json").exists()
    again = await world.reclaimer.leftovers(world.job, "host-1", "8")
    assert isinstance(again, ev.LeftoversReclaimed) and again.removed_bytes == 0


async def test_fsck_tells_of_the_old_copy_and_removes_it_as_a_dispatcher_would(
    world: World,
) -> None:
    await world.commit(await world.hand_over())
    report = await fsck.check(world.store, world.fleet)
    (left,) = [item for item in report.differences if item.kind == "leftovers"]
    assert (left.job, left.where, left.repairable) == (world.job.id, "host-1", True)
    mended = await fsck.repair(world.store, world.fleet, report)
    assert [item.repaired for item in mended.differences if item.kind == "leftovers"] == [True]
    assert not (world.old / "frames").exists() and (world.new / "frames").exists()
    again = await fsck.check(world.store, world.fleet)
    assert "leftovers" not in [item.kind for item in again.differences]


async def test_what_is_not_what_was_brought_is_kept(world: World) -> None:
    await world.commit(await world.hand_over())
    (world.old / "output" / "manifest.json").write_text("edited by hand since")
    kept = await world.reclaimer.leftovers(world.job, "host-1", "8")
    assert isinstance(kept, ev.ReclaimFailed) and "manifest.json" in kept.message
    assert (world.old / "sfm" / "model.bin").exists()


async def test_a_stage_whose_output_is_lost_is_made_again(world: World) -> None:
    (world.old / "output" / "manifest.json").unlink()
    over = await world.hand_over()
    assert isinstance(over, ev.HandedOver) and over.stage is Stage.MANIFEST_GENERATION
    await world.commit(over)
    assert world.job.stage is Stage.MANIFEST_GENERATION


async def test_frames_that_are_lost_start_the_job_over(world: World) -> None:
    (world.old / "frames" / "f000004.jpg").write_bytes(b"rot")
    over = await world.hand_over()
    assert isinstance(over, ev.HandoffAbandoned) and "frames/frames.json" in over.message
    before = world.job
    await world.commit(over)
    assert world.job.stage is Stage.VALIDATION
    assert step(before, over)[1] == (fx.TransferInputs(job=before.id, host="host-2"),)


async def test_a_dead_old_host_is_not_waited_for_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.hosts.stop_host("host-1")
    monkeypatch.setattr(core_handoff, "PATIENCE_MOST_S", 0.0)
    over = await world.hand_over()
    assert isinstance(over, ev.HandoffAbandoned), over
    assert "host-1" in over.message


async def test_a_dead_old_host_does_not_matter_once_all_is_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.hand_over()
    world.hosts.stop_host("host-1")
    monkeypatch.setattr(core_handoff, "PATIENCE_MOST_S", 0.0)
    over = await world.hand_over()
    assert isinstance(over, ev.HandedOver), over
    assert (over.route, over.stage, over.files) == ("there", Stage.TRAINING, 0)


async def test_a_fault_of_the_new_host_is_not_blamed_on_the_old_one(world: World) -> None:
    world.hosts.stop_host("host-2")
    over = await world.hand_over()
    assert isinstance(over, ev.TransferFailed) and over.reason is Reason.HOST_UNREACHABLE


async def test_the_transfer_of_a_killed_dispatcher_is_waited_for(world: World) -> None:
    world.new.mkdir(parents=True)
    with alone(world.new):
        handing = asyncio.create_task(world.hand_over())
        done, _ = await asyncio.wait([handing], timeout=1.0)
        assert not done
    over = await handing
    assert isinstance(over, ev.HandedOver) and over.stage is Stage.TRAINING


async def test_a_host_that_left_the_inventory_is_not_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_handoff, "PATIENCE_SHARE", 1e9)
    monkeypatch.setattr(core_handoff, "PATIENCE_MOST_S", 1e9)
    await world.fleet.reload(
        Inventory(hosts=world.fleet.inventory.hosts[1:]),
        lambda host: SshExecutor.connect_to(host, agent_bundle.build()),
    )
    over = await asyncio.wait_for(world.hand_over(), timeout=60.0)
    assert isinstance(over, ev.HandoffAbandoned) and "no longer in the inventory" in over.message
