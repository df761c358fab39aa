"""What every transition of a job returns or raises."""

from __future__ import annotations

from typing import Any, Final

from dispatcher.core.effects import Effect
from dispatcher.core.events import Event
from dispatcher.core.model import Job

Outcome = tuple[Job, tuple[Effect, ...]]

NO_REASON: Final[dict[str, Any]] = {"reason": None, "message": "", "advice": ""}


class IllegalTransition(Exception):
    """The event cannot happen to the job where it stands."""

    def __init__(self, job: Job, event: Event, why: str = "") -> None:
        self.job = job
        self.event = event
        super().__init__(f"{event} is illegal for {story(job)}{': ' + why if why else ''}")


class StaleEvent(Exception):
    """The event speaks of an attempt or an effect that has been overtaken; drop it."""

    def __init__(self, job: Job, event: Event) -> None:
        self.job = job
        self.event = event
        super().__init__(f"{event} comes too late for {story(job)}")


def story(job: Job) -> str:
    """One line: where the job stands and how it came there."""
    used = ", ".join(f"{layer} {count}" for layer, count in sorted(job.retries.items()) if count)
    return (
        f"{job.kind} job {job.id} ({job.state}, step {job.step}, stage {job.stage}, "
        f"host {job.host or 'none'}, attempt {job.attempt}, revision {job.revision}, "
        f"retries {used or 'none'}"
        + (f", {job.reason}: {job.message}" if job.reason is not None else "")
        + ")"
    )
