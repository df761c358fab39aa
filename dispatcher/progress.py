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
        message = message or _brought(job, progress)
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


def doing(job: Job, progress: Progress | None, now: float) -> str:
    """What is being done for a job that neither waits for a place nor has settled, in one line;
    `now` is wall clock. "": nothing is."""
    match job.step:
        case Step.TRANSFER:
            known = _brought(job, progress)
        case Step.START:
            known = f"{job.stage} is being started on {job.host} (attempt {job.attempt})"
        case Step.RUN:
            known = f"{job.stage} runs on {job.host}"
            if progress is None or _of_transfer(progress):
                return f"{known}; it has not said yet how far it is"
            said = f" ({progress.message})" if progress.message else ""
            age = max(0.0, now - progress.updated_at)
            return f"{known}, at {progress.fraction:.0%}{said}, heard of {age:.0f} s ago"
        case Step.COLLECT:
            known = f"its results are being copied from {job.host}"
        case Step.CANCEL:
            return f"{job.message or 'is cancelled'}; {job.host} has not confirmed its end yet"
        case Step.PLACE | Step.REST:
            return ""
    if job.not_before > now:
        known += f"; tries again in {job.not_before - now:.0f} s"
    return f"{known} (after {job.reason}: {job.message})" if job.reason else known


def _brought(job: Job, progress: Progress | None) -> str:
    if progress is not None and _of_transfer(progress):
        return progress.message
    if job.origin is not None:
        return f"what its finished stages made is being brought from {job.origin} to {job.host}"
    return f"inputs are being brought to {job.host}"


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
