"""What an attempt's failure makes of its job: the budgets, the smaller plans, who pays."""

from __future__ import annotations

import dataclasses

import pytest

from dispatcher.core import effects as fx
from dispatcher.core import events as ev
from dispatcher.core.machine import StaleEvent, recover, step
from dispatcher.core.model import JobState, Layer, Reason, Stage, Step
from dispatcher.core.work_size import MAX_STRIDE
from tests.unit.jobs import at_run, drive, failed, new_job, reservation


def test_data_is_held_at_once_and_its_frames_stay_where_they_are() -> None:
    job = at_run(Stage.VALIDATION)
    held, effects = step(job, failed(job, Reason.INPUT_EMPTY, "GX01.MP4: the file has 0 bytes"))
    assert (held.state, held.reason) == (JobState.HELD, Reason.INPUT_EMPTY)
    assert held.message == "GX01.MP4: the file has 0 bytes"
    assert held.host == "h" and held.inputs_on_host
    assert effects == (fx.PlanStitches(job=job.id, acquisition="dive"),)
    again, effects = step(held, ev.ReleaseRequested(at=0.0))
    assert (again.state, again.step, again.retries) == (JobState.CLAIMED, Step.TRANSFER, {})
    assert again.reason is None and effects == (fx.TransferInputs(job=job.id, host="h"),)


def test_a_crash_is_tried_once_more_there_once_elsewhere_and_then_held() -> None:
    job = at_run(Stage.COLMAP_RECONSTRUCTION)
    again, _ = step(job, failed(job, Reason.STAGE_CRASHED))
    assert (again.step, again.host, again.stage) == (Step.PLACE, "h", Stage.COLMAP_RECONSTRUCTION)
    assert again.not_before > 10.0 and again.retries == {"code": 1}
    job = drive(again, [ev.StagePlaced(at=0.0, reservation=reservation(again))])
    moved, _ = step(job, failed(job, Reason.STAGE_CRASHED))
    assert (moved.state, moved.host, moved.avoid_hosts) == (JobState.QUEUED, None, ("h",))
    job = drive(moved, [ev.HostAssigned(at=0.0, host="other"), ev.InputsReady(at=0.0)])
    job = drive(job, [ev.StagePlaced(at=0.0, reservation=reservation(job))])
    held, _ = step(job, failed(job, Reason.STAGE_CRASHED))
    assert held.state is JobState.HELD and "after 2 retries" in held.message
    assert held.advice == (
        "read the log (cosma job logs dive-a-seg1); then: cosma job retry dive-a-seg1"
    )


def test_host_faults_leave_the_budget_of_the_code_alone_and_move_the_job() -> None:
    job = at_run(Stage.TRAINING)
    moved, effects = step(job, failed(job, Reason.HOST_UNREACHABLE))
    assert (moved.state, moved.host, moved.stage) == (JobState.QUEUED, None, Stage.TRAINING)
    assert moved.origin == "h"
    assert moved.avoid_hosts == ("h",) and "code" not in moved.retries
    assert not moved.inputs_on_host
    assert effects == (fx.ReclaimInputs(job=job.id, host="h"),)


def test_training_out_of_memory_takes_smaller_plans_then_a_bigger_gpu() -> None:
    job = at_run(Stage.TRAINING)
    plans = []
    for _ in range(3):
        job, _ = step(job, failed(job, Reason.GPU_OUT_OF_MEMORY))
        assert (job.step, job.host) == (Step.PLACE, "h")
        plans.append((job.shrink, job.need_mib))
        promised = dataclasses.replace(reservation(job), mib=job.need_mib or 1000)
        job = drive(job, [ev.StagePlaced(at=0.0, reservation=promised)])
    assert plans == [(1, None), (2, None), (2, 1500)]
    held, _ = step(job, failed(job, Reason.GPU_OUT_OF_MEMORY))
    assert held.state is JobState.HELD and f"cosma job retry {job.id}" in held.advice


@pytest.mark.parametrize("stage", [Stage.COLMAP_RECONSTRUCTION, Stage.TRAINING])
def test_out_of_ram_asks_for_more_of_it_then_takes_fewer_frames(stage: Stage) -> None:
    job = at_run(stage)
    plans = []
    for _ in range(3):
        promised = dataclasses.replace(job.reservation, ram_mib=4000)  # type: ignore[type-var]
        job = dataclasses.replace(job, reservation=promised)
        job, _ = step(job, failed(job, Reason.OUT_OF_MEMORY))
        assert (job.step, job.host, job.stage) == (Step.PLACE, "h", stage)
        plans.append((job.need_ram_mib, job.stride, job.shrink))
        job = drive(job, [ev.StagePlaced(at=0.0, reservation=reservation(job))])
    assert plans == [(6000, 1, 0), (3000, 2, 0), (1500, 4, 0)]
    held, _ = step(job, failed(job, Reason.OUT_OF_MEMORY))
    assert held.state is JobState.HELD and held.stride == 4


def plan(shrink: int, stride: int) -> ev.PlanReduced:
    return ev.PlanReduced(at=0.0, shrink=shrink, stride=stride, message="x")


def test_what_fits_no_host_takes_a_smaller_plan_and_never_a_larger_one() -> None:
    job = new_job(need_ram_mib=9000, need_mib=7000)
    thinned, effects = step(job, plan(0, 3))
    assert (thinned.stride, thinned.need_ram_mib, effects) == (3, 3000, ())
    assert (thinned.step, thinned.shrink, thinned.need_mib) == (Step.PLACE, 0, 7000)
    shrunk, _ = step(thinned, plan(2, 3))
    assert (shrunk.stride, shrunk.shrink, shrunk.need_ram_mib) == (3, 2, 3000)
    assert shrunk.need_mib == 4200, "it was asked for by a larger plan"
    for stale in (plan(2, 3), plan(1, 4), plan(3, 2), plan(2, MAX_STRIDE + 1), plan(9, 3)):
        with pytest.raises(StaleEvent):
            step(shrunk, stale)
    with pytest.raises(StaleEvent):
        step(at_run(Stage.TRAINING), plan(0, 2))


def test_a_suspect_host_pays_for_the_failure_and_the_job_goes_elsewhere() -> None:
    job = at_run(Stage.COLMAP_RECONSTRUCTION, retries={"code": 2})
    held, _ = step(job, failed(job, Reason.STAGE_CRASHED))
    assert held.state is JobState.HELD
    moved, _ = step(job, failed(job, Reason.STAGE_CRASHED, blame=Layer.HOST))
    assert (moved.state, moved.host, moved.avoid_hosts) == (JobState.QUEUED, None, ("h",))
    assert moved.retries == {"code": 2, "host": 1}


@pytest.mark.parametrize("where", ["transfer", "attempt"])
def test_a_full_disk_moves_the_job_and_nothing_of_it_stays_there(where: str) -> None:
    if where == "attempt":
        full = at_run(Stage.FRAME_EXTRACTION)
        event = failed(full, Reason.DISK_FULL)
    else:
        full = drive(new_job(), [ev.HostAssigned(at=0.0, host="h")])
        event = ev.TransferFailed(at=0.0, reason=Reason.DISK_FULL, message="9 bytes more")
    moved, effects = step(full, event)
    assert (moved.step, moved.host, moved.stage) == (Step.PLACE, None, Stage.VALIDATION)
    assert (moved.avoid_hosts, moved.retries) == (("h",), {"resource": 1})
    assert moved.leftovers == ("h",)
    assert effects[-1] == fx.ReclaimLeftovers(job=full.id, host="h") == recover(moved)[-1]
