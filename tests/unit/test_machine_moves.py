"""A job that moves, starts again or comes back: what it takes along, and what it leaves."""

from __future__ import annotations

import dataclasses

import pytest

from dispatcher.core import effects as fx
from dispatcher.core import events as ev
from dispatcher.core.machine import recover, step
from dispatcher.core.model import JobState, Reason, Stage, Step
from tests.unit.jobs import at_run, drive, failed, new_job


@pytest.mark.parametrize(
    ("stage", "inputs", "expected"),
    [
        (Stage.TRAINING, False, (Step.PLACE, "h", Stage.TRAINING)),
        (Stage.FRAME_EXTRACTION, False, (Step.PLACE, None, Stage.VALIDATION)),
        (Stage.FRAME_EXTRACTION, True, (Step.TRANSFER, "h", Stage.VALIDATION)),
        (None, False, (Step.PLACE, None, Stage.VALIDATION)),
    ],
)
def test_a_rerun_starts_where_its_inputs_still_are(
    stage: Stage | None, inputs: bool, expected: tuple[Step, str | None, Stage]
) -> None:
    done = new_job(
        host="h", stage=Stage.COMPLETED, state=JobState.DONE, step=Step.REST,
        inputs_on_host=inputs, retries={"code": 1}, attempt=8,
    )  # fmt: skip
    again, _ = step(done, ev.ReleaseRequested(at=0.0, stage=stage))
    assert (again.step, again.host, again.stage) == expected
    assert again.retries == {} and again.attempt == 8


def test_what_the_rules_removed_is_made_again_from_the_first_stage() -> None:
    done = new_job(host="h", stage=Stage.COMPLETED, state=JobState.DONE, step=Step.REST)
    gone = ev.MadeReclaimed(
        at=0.0, host="h", kinds=("frames", "features"), removed_bytes=9, freed_bytes=9
    )
    done = drive(done, [gone, dataclasses.replace(gone, host="old", kinds=("training",))])
    assert done.reclaimed == ("frames", "features")
    for stage, expected in (
        (Stage.TRAINING, (None, Stage.VALIDATION)),
        (Stage.PLY_EXPORT, ("h", Stage.PLY_EXPORT)),
    ):
        again, _ = step(done, ev.ReleaseRequested(at=0.0, stage=stage))
        assert (again.host, again.stage) == expected
    again, _ = step(done, ev.ReleaseRequested(at=0.0, stage=Stage.TRAINING))
    there = drive(again, [ev.HostAssigned(at=0.0, host="h"), ev.InputsReady(at=0.0)])
    assert there.reclaimed == ()


def test_a_drained_dispatcher_holds_what_no_host_can_take() -> None:
    held, _ = step(
        new_job(),
        ev.TransferFailed(at=0.0, reason=Reason.HOST_KEY_MISMATCH, message="h: another key"),
    )
    assert (held.state, held.reason) == (JobState.HELD, Reason.HOST_KEY_MISMATCH)


def test_a_moved_job_takes_along_what_its_stages_made() -> None:
    job = new_job(host="h", state=JobState.RUNNING, stage=Stage.TRAINING)
    moved, effects = step(job, ev.HostAssigned(at=0.0, host="big"))
    assert (moved.step, moved.stage, moved.host) == (Step.TRANSFER, Stage.TRAINING, "big")
    bringing = fx.HandOver(job=job.id, host="big", source="h")
    assert effects == (bringing,) and recover(moved) == (bringing,)
    event = ev.HandedOver(at=0.0, source="h", stage=Stage.TRAINING, route="relayed")
    there, effects = step(moved, event)
    assert (there.step, there.stage, there.origin) == (Step.PLACE, Stage.TRAINING, None)
    removing = fx.ReclaimLeftovers(job=job.id, host="h")
    assert effects == (removing,) and recover(there) == (removing,)
    gone = ev.LeftoversReclaimed(at=0.0, host="h", removed_bytes=9, freed_bytes=0)
    assert recover(drive(there, [gone])) == ()


@pytest.mark.parametrize("stage", [Stage.VALIDATION, Stage.FRAME_EXTRACTION])
def test_a_job_that_still_reads_the_source_starts_afresh_elsewhere(stage: Stage) -> None:
    job = new_job(host="h", state=JobState.EXTRACTING, stage=stage, inputs_on_host=True)
    moved, effects = step(job, ev.HostAssigned(at=0.0, host="big"))
    assert (moved.step, moved.stage, moved.origin) == (Step.TRANSFER, Stage.VALIDATION, None)
    assert effects == (
        fx.ReclaimInputs(job=job.id, host="h"),
        fx.TransferInputs(job=job.id, host="big"),
    )


def test_outputs_that_cannot_be_had_are_made_again() -> None:
    job = new_job(host="h", state=JobState.RUNNING, stage=Stage.TRAINING)
    moved, _ = step(job, ev.HostAssigned(at=0.0, host="big"))
    afresh, effects = step(moved, ev.HandoffAbandoned(at=0.0, source="h", message="h is dead"))
    assert (afresh.step, afresh.stage, afresh.host) == (Step.TRANSFER, Stage.VALIDATION, "big")
    assert afresh.origin is None and afresh.leftovers == ()
    assert effects == (fx.TransferInputs(job=job.id, host="big"),)


def test_a_handoff_that_fails_at_the_new_host_goes_on_to_another() -> None:
    job = new_job(host="h", state=JobState.RUNNING, stage=Stage.TRAINING)
    moved, _ = step(job, ev.HostAssigned(at=0.0, host="full"))
    job, effects = step(moved, ev.TransferFailed(at=0.0, reason=Reason.DISK_FULL, message="x"))
    assert (job.state, job.origin, job.avoid_hosts) == (JobState.QUEUED, "h", ("full",))
    assert effects == (fx.ReclaimLeftovers(job=job.id, host="full"),)
    job, effects = step(job, ev.HostAssigned(at=0.0, host="big"))
    assert effects == (fx.HandOver(job=job.id, host="big", source="h"),)
    assert job.leftovers == ("full",)


def test_a_job_that_comes_back_is_not_cleared_away_under_its_feet() -> None:
    job = new_job(host="a", state=JobState.RUNNING, stage=Stage.TRAINING)
    over = ev.HandedOver(at=0.0, source="a", stage=Stage.TRAINING, route="direct")
    job = drive(job, [ev.HostAssigned(at=0.0, host="b"), over])
    assert job.leftovers == ("a",)
    job = drive(job, [ev.HostAssigned(at=0.0, host="a")])
    assert job.leftovers == () and recover(job) == (fx.HandOver(job=job.id, host="a", source="b"),)


def test_what_a_job_left_elsewhere_goes_once_its_results_are_collected() -> None:
    job = new_job(
        host="h", stage=Stage.SPLAT_EXPORT, step=Step.COLLECT, state=JobState.RUNNING,
        leftovers=("a",),
    )  # fmt: skip
    done, effects = step(job, ev.ResultsCollected(at=0.0, left_on=("a", "dead", "h")))
    assert done.leftovers == ("a", "dead")
    removing = tuple(fx.ReclaimLeftovers(job=job.id, host=host) for host in ("a", "dead"))
    assert effects[1:] == removing
    assert recover(done)[1:] == removing


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (Stage.TRAINING, (Step.TRANSFER, "big", Stage.TRAINING, "h")),
        (Stage.COLMAP_RECONSTRUCTION, (Step.TRANSFER, "big", Stage.COLMAP_RECONSTRUCTION, "h")),
        (Stage.FRAME_EXTRACTION, (Step.PLACE, None, Stage.VALIDATION, None)),
    ],
)
def test_a_cancelled_handoff_can_be_taken_up_again(
    stage: Stage, expected: tuple[Step, str | None, Stage, str | None]
) -> None:
    job = new_job(host="h", state=JobState.RUNNING, stage=Stage.TRAINING)
    job = drive(job, [ev.HostAssigned(at=0.0, host="big"), ev.CancelRequested(at=0.0)])
    assert recover(job) == (fx.PlanStitches(job=job.id, acquisition="dive"),)
    again, _ = step(job, ev.ReleaseRequested(at=0.0, stage=stage))
    assert (again.step, again.host, again.stage, again.origin) == expected


def test_a_late_reply_of_the_host_it_left_says_nothing_about_the_new_one() -> None:
    job = at_run(Stage.VALIDATION)
    job, effects = step(job, failed(job, Reason.HOST_UNREACHABLE))
    leftovers = fx.ReclaimLeftovers(job=job.id, host="h")
    assert effects == (fx.ReclaimInputs(job=job.id, host="h"), leftovers)
    job = drive(job, [ev.HostAssigned(at=0.0, host="new"), ev.InputsReady(at=0.0)])
    late = ev.InputsReclaimed(at=0.0, host="h", removed_bytes=9, freed_bytes=0)
    assert drive(job, [late]).inputs_on_host
