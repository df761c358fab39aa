"""The percentage other tools read, and the reason beside it."""

from __future__ import annotations

import dataclasses
from typing import Any

from dispatcher.core.model import (
    RECONSTRUCT_STAGES,
    Job,
    JobKind,
    JobState,
    Reason,
    Stage,
    Step,
    Waiting,
)
from dispatcher.progress import doing, job_row, percent
from dispatcher.store.rows import Progress

JOB = Job(
    id="j", kind=JobKind.RECONSTRUCT, acquisition="a", name="s", auv="x", created_at=0.0
)  # fmt: skip


def _at(stage: Stage, step: Step = Step.RUN) -> Job:
    return dataclasses.replace(JOB, stage=stage, step=step, state=JobState.RUNNING)


def _progress(fraction: float) -> Progress:
    return Progress(fraction=fraction, message="step 5", numbers={}, updated_at=0.0)


def test_progress_never_goes_back_through_the_stages() -> None:
    seen = [
        percent(_at(stage), _progress(fraction))
        for stage in RECONSTRUCT_STAGES
        for fraction in (0.0, 0.5, 1.0)
    ]
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 100.0)


def test_progress_of_an_earlier_attempt_does_not_count_while_the_stage_waits() -> None:
    assert percent(_at(Stage.TRAINING, Step.PLACE), _progress(0.9)) == 62.5


def test_a_stitch_runs_from_0_to_100() -> None:
    stitch = dataclasses.replace(
        JOB, kind=JobKind.STITCH, stage=Stage.STITCH, step=Step.RUN, state=JobState.RUNNING
    )
    assert percent(stitch, _progress(0.25)) == 25.0


def test_a_waiting_job_shows_why() -> None:
    waiting = Waiting(job="j", reason=Reason.GPU_BUSY, message="needs 6000 MiB, free 5200 MiB")
    row = job_row(JOB, None, waiting)
    assert (row.reason, row.message) == ("gpu_busy", "needs 6000 MiB, free 5200 MiB")


def test_a_job_that_runs_shows_what_its_stage_says() -> None:
    assert job_row(_at(Stage.TRAINING), _progress(0.1), None).message == "step 5"


def test_whatever_is_done_for_a_job_is_said_in_words() -> None:
    def said(step: Step, progress: Progress | None = None, **values: Any) -> str:
        at = _at(Stage.TRAINING, step)
        return doing(dataclasses.replace(at, host="gpu-a", attempt=5, **values), progress, 100.0)

    assert said(Step.TRANSFER) == "inputs are being brought to gpu-a"
    assert said(Step.TRANSFER, origin="gpu-b") == (
        "what its finished stages made is being brought from gpu-b to gpu-a"
    )
    failed = {"reason": Reason.TRANSFER_FAILED, "message": "the link broke", "not_before": 130.0}
    assert said(Step.COLLECT, **failed) == (
        "its results are being copied from gpu-a; tries again in 30 s "
        "(after transfer_failed: the link broke)"
    )
    assert said(Step.START) == "Training is being started on gpu-a (attempt 5)"
    assert said(Step.RUN) == "Training runs on gpu-a; it has not said yet how far it is"
    assert said(Step.RUN, _progress(0.5)).startswith("Training runs on gpu-a, at 50%")
    assert said(Step.CANCEL, message="cancelled by ann") == (
        "cancelled by ann; gpu-a has not confirmed its end yet"
    )
    assert said(Step.PLACE) == said(Step.REST) == ""
