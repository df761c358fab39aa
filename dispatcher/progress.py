"""One row a job, as commands, the live view and the heartbeat show it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from dispatcher.core.model import PROGRESS, Job, JobState, Stage, Step, Waiting, stages_of
from dispatcher.core.outlook import Eta
from dispatcher.store.rows import Progress

# Share of a stitch at which it counts as not yet done: it has one stage only.
_SPAN = 12.5


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    job: str
    kind: str
    auv: str
    state: str
    stage: str
    percent: float  # of the whole job, the public numbers interpolated within the stage
    host: str
    eta: Eta | None  # of the whole job; None: it has ended, never ends, or nobody worked it out
    attempt: int
    reason: str
    message: str


def job_row(
    job: Job, progress: Progress | None, waiting: Waiting | None, eta: Eta | None = None
) -> JobRow:
    """`progress` is of the current stage; `waiting` is why a job at Step.PLACE is not placed."""
    reason, message = str(job.reason or ""), job.message
    if waiting is not None and job.step is Step.PLACE and not reason:
        reason, message = str(waiting.reason), waiting.message
    elif job.step is Step.RUN and progress is not None and not _of_transfer(progress):
        message = progress.message
    elif job.step is Step.TRANSFER:
        known = progress.message if _of_transfer(progress) and progress else ""
        message = message or known or "inputs are being brought to the host"
    return JobRow(
        job=job.id,
        kind=job.kind.value,
        auv=job.auv or "",
        state=job.state.value,
        stage=job.stage.value,
        percent=percent(job, progress),
        host=job.host or "",
        eta=eta,
        attempt=job.attempt,
        reason=reason,
        message=message,
    )


def _of_transfer(progress: Progress | None) -> bool:
    """It says how far the inputs were, not the stage (see dispatcher.input_delivery)."""
    return progress is not None and "transfer" in progress.numbers


def percent(job: Job, progress: Progress | None) -> float:
    if job.state is JobState.DONE or job.stage is Stage.COMPLETED:
        return 100.0
    fraction = progress.fraction if progress is not None and job.step is Step.RUN else 0.0
    if job.step is Step.COLLECT:
        fraction = 1.0
    span = _SPAN if len(stages_of(job.kind)) > 1 else 100.0
    return round(PROGRESS[job.stage] + span * min(1.0, max(0.0, fraction)), 1)
