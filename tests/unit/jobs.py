"""Jobs at any point of their lives, for tests of the state machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from dispatcher.core import events as ev
from dispatcher.core import model as m
from dispatcher.core.machine import (
    step,
)
from dispatcher.core.model import Job, JobKind, JobState, Reason, Stage


def new_job(kind: JobKind = JobKind.RECONSTRUCT, **values: object) -> Job:
    job = Job(
        id="dive-a-seg1",
        kind=kind,
        acquisition="dive",
        name="seg1",
        auv="a",
        created_at=0.0,
        stage=m.stages_of(kind)[0],
    )
    return dataclasses.replace(job, **values)  # type: ignore[arg-type]


def reservation(job: Job) -> m.Reservation:
    return m.Reservation(
        job=job.id, attempt=job.attempt + 1, host=job.host or "", slot="train", gpu="G", mib=1000
    )


def drive(job: Job, events: Iterable[ev.Event]) -> Job:
    for event in events:
        job, _ = step(job, event)
    return job


def at_run(stage: Stage, kind: JobKind = JobKind.RECONSTRUCT, **values: object) -> Job:
    """On host h, in a live attempt of `stage`."""
    job = new_job(kind, host="h", stage=stage, state=JobState.CLAIMED, inputs_on_host=True)
    job = dataclasses.replace(job, **values)  # type: ignore[arg-type]
    placed = ev.StagePlaced(at=1.0, reservation=reservation(job))
    return drive(job, [placed, ev.AttemptStarted(at=2.0, attempt=job.attempt + 1)])


def failed(job: Job, reason: Reason, message: str = "it broke", **values: object) -> ev.Event:
    return ev.AttemptFailed(at=10.0, attempt=job.attempt, reason=reason, message=message, **values)  # type: ignore[arg-type]
