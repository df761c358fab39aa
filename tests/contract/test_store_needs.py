"""What runs took, as needs are learned from it: stored with what the runs were of."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dispatcher.clock import ManualClock
from dispatcher.core import events as ev
from dispatcher.core import model as m
from dispatcher.core.model import Job, JobKind, JobState, Reason, Stage, Step
from dispatcher.core.views import GpuView
from dispatcher.learning import Learning
from dispatcher.stitching import Stitching
from dispatcher.store.base import Store
from dispatcher.store.rows import Acquisition, Host
from tests.contract.store_builders import JOB, RUN, SEGMENT, advance, fill, record, running
from worker_agent.protocol import ExitRecord

GPU = {"uuid": "GPU-1", "name": "RTX 3090", "kind": "cuda", "total_mib": 24_000, "free_mib": 9}


def ended(metrics: dict[str, Any] | None = None, **changes: Any) -> ExitRecord:
    made = record()
    assert made.outcome is not None
    outcome = dataclasses.replace(made.outcome, metrics=metrics or {})
    return dataclasses.replace(made, outcome=outcome, **changes)


async def at_training(store: Store, name: str = JOB.id) -> Job:
    """An attempt of a training on GPU-1 of host h, alive."""
    await store.upsert_host(
        Host(name="h", state="reachable", message="", facts={"gpus": [GPU]}, probed_at=1.0,
             updated_at=1.0)
    )  # fmt: skip
    job = dataclasses.replace(
        JOB, id=name, stage=Stage.TRAINING, host="h", step=Step.PLACE,
        frames=300, pixels=100, cap=1000, train_steps=7, stride=2, shrink=1,
    )  # fmt: skip
    if await store.job(JOB.id) is None:
        await fill(store, dataclasses.replace(job, id=JOB.id))
    if name != JOB.id:
        await store.create_job(job, dataclasses.replace(RUN, job=name))
    promise = m.Reservation(job=name, attempt=1, host="h", slot="train", gpu="GPU-1", mib=6000)
    placed = ev.StagePlaced(at=3.0, reservation=promise)
    return (await advance(store, job, placed, ev.AttemptStarted(at=4.0, attempt=1))).job


SUCCESS = ev.AttemptSucceeded(at=9.0, attempt=1)


def failed(reason: Reason) -> ev.AttemptFailed:
    return ev.AttemptFailed(at=9.0, attempt=1, reason=reason, message="x")


async def test_all_that_needs_depend_on_comes_back_with_the_job(store: Store) -> None:
    job = dataclasses.replace(
        JOB, frames=9, pixels=8, cap=7, train_steps=6, stride=5, need_ram_mib=4
    )  # fmt: skip
    await fill(store, job)
    assert await store.job(job.id) == job
    changed = dataclasses.replace(job, frames=90, pixels=80, cap=70, train_steps=60, stride=8)
    await store.apply(job, changed, ev.PlanReduced(at=1.0, shrink=0, stride=8, message="x"))
    assert await store.job(job.id) == dataclasses.replace(changed, revision=1)


async def test_a_run_is_stored_with_the_plan_it_was_run_by(store: Store) -> None:
    job = await at_training(store)
    await store.finish_attempt(job.id, 1, ended(peak_disk_bytes=77))
    (row,) = await store.stage_metrics(job.id)
    assert (row.device, row.gpu, row.peak_disk_bytes) == ("RTX 3090", "GPU-1", 77)
    assert (row.frames, row.pixels, row.cap, row.train_steps) == (150, 100, 600, 7)
    assert await store.observation(job.id, 1) is None, "it has not ended yet"
    await advance(store, job, SUCCESS)
    one = await store.observation(job.id, 1)
    assert one is not None and one == (await store.observations(newest=9))[0]
    assert (one.stage, one.device, one.shape.frames) == (Stage.TRAINING, "RTX 3090", 150)
    assert (one.wall_s, one.cpu_s, one.peak_rss_mib, one.peak_vram_mib) == (5.0, 8.0, 100.0, 4321.0)
    assert one.died_of is None


async def test_frames_are_those_that_the_stage_itself_counted(store: Store) -> None:
    job = await running(store)  # Validation, on a GPU that no host has shown
    metrics = {"frames": 33, "width": 20, "height": 10}
    await store.finish_attempt(job.id, 1, ended(metrics))
    (row,) = await store.stage_metrics(job.id)
    assert (row.frames, row.pixels, row.device) == (33, 200, "")


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (SUCCESS, True),
        (dataclasses.replace(SUCCESS, resumed=True), False),
        (failed(Reason.GPU_OUT_OF_MEMORY), True),
        (failed(Reason.OUT_OF_MEMORY), True),
        (failed(Reason.STAGE_CRASHED), False),
        (failed(Reason.HOST_UNREACHABLE), False),
    ],
)
async def test_only_work_done_and_memory_that_ran_out_tell_about_needs(
    store: Store, event: ev.Event, told: bool
) -> None:
    job = await at_training(store)
    await store.finish_attempt(job.id, 1, ended())
    await advance(store, job, event)
    one = await store.observation(job.id, 1)
    assert (one is not None) == told == bool(await store.observations(newest=9))
    if one is not None:
        assert one.died_of == getattr(event, "reason", None)


async def test_a_stitch_is_as_much_work_as_its_members_came_to(store: Store) -> None:
    for name, found in (("a1", {"gaussians": 5000}), ("a2", {})):
        job = dataclasses.replace(
            JOB, id=name, stage=Stage.TRAINING, host="h", frames=30, cap=1_000_000, shrink=1
        )
        await store.create_acquisition(Acquisition(id="dive", name="Dive", created_at=1.0))
        segment = dataclasses.replace(SEGMENT, id=name, label=name, job=name)
        await store.create_segment(segment, job, dataclasses.replace(RUN, job=name))
        promise = m.Reservation(job=name, attempt=1, host="h", slot="train")
        placed = ev.StagePlaced(at=3.0, reservation=promise)
        at_work = (await advance(store, job, placed, ev.AttemptStarted(at=4.0, attempt=1))).job
        await store.finish_attempt(name, 1, ended(found))
        done = dataclasses.replace(
            at_work, state=JobState.DONE, step=Step.REST, reservation=None, stage=Stage.COMPLETED
        )
        await store.apply(at_work, done, SUCCESS)
    await Stitching(store, ManualClock()).plan("dive")
    (stitch,) = [job for job in await store.load_jobs() if job.kind is JobKind.STITCH]
    assert (stitch.frames, stitch.cap) == (60, 605_000)


async def test_an_attempt_without_an_exit_record_tells_nothing(store: Store) -> None:
    job = await at_training(store)
    await advance(store, job, failed(Reason.OUT_OF_MEMORY))
    assert await store.observation(job.id, 1) is None
    assert await store.observations(newest=9) == []


async def test_of_each_stage_and_device_the_newest_come_back_oldest_first(store: Store) -> None:
    for number in range(6):
        job = await at_training(store, f"j{number}")
        await store.finish_attempt(job.id, 1, ended(wall_s=float(number)))
        await advance(store, job, dataclasses.replace(SUCCESS, at=100.0 - number))
    assert [one.wall_s for one in await store.observations(newest=4)] == [3.0, 2.0, 1.0, 0.0]


async def test_needs_follow_each_attempt_and_a_new_dispatcher_knows_as_much(store: Store) -> None:
    device = GpuView(uuid="GPU-9", name="RTX 3090", kind="cuda", total_mib=24_000, free_mib=9)
    learning = await Learning.from_store(store)
    asked = dataclasses.replace(JOB, stage=Stage.TRAINING)
    guess = learning.needs.of(asked, device)
    replaced = 0
    for number in range(12):
        job = await at_training(store, f"j{number}")
        await store.finish_attempt(job.id, 1, ended(peak_vram_mib=700.0, wall_s=30.0))
        await advance(store, job, SUCCESS)
        before = learning.needs
        await learning.look(job.id, 1)
        assert learning.needs is before, "whoever decides by it says when it may change"
        replaced += learning.take_up() is not before
        assert learning.take_up() is learning.needs
    learned = learning.needs.of(asked, device)
    assert guess.runs == 0 and learned.runs >= 5
    assert learned.vram_mib < guess.vram_mib and learned.seconds.high < guess.seconds.high
    assert replaced < 12, "needs that answer alike are not handed out anew"
    again = (await Learning.from_store(store)).needs.of(asked, device)
    assert (again.vram_mib, again.ram_mib) == (learned.vram_mib, learned.ram_mib)

    job = await at_training(store, "crashed")
    await store.finish_attempt(job.id, 1, ended(peak_vram_mib=20_000.0))
    await advance(store, job, failed(Reason.STAGE_CRASHED))
    before = learning.needs
    await learning.look(job.id, 1)
    assert learning.take_up() is before
