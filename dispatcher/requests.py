"""What an operator's command asks of the dispatcher: the event it stands for, and why not. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from dispatcher.core.decisions import Decision, Point, Verdict
from dispatcher.core.events import CancelRequested, Event, PriorityChanged, ReleaseRequested
from dispatcher.core.machine import LIVE_STEPS, IllegalTransition, StaleEvent, step
from dispatcher.core.model import MOST_PRIORITY, TERMINAL, Job, JobKind, Stage, Step
from dispatcher.store.rows import Request

CANCEL = "cancel"
RETRY = "retry"
PRIORITY = "priority"
ABANDON = "abandon"
DECISIONS = tuple(verdict.value for verdict in Verdict)
"""About a stitch's members: no event of its job, but a reason for its next version."""


def event_of_request(request: Request, *, at: float) -> Event:
    """Raises ValueError for a kind or an argument no command of this version writes."""
    stimulus = f"request-{request.id}"
    if request.kind == CANCEL:
        return CancelRequested(at=at, stimulus=stimulus)
    if request.kind == RETRY:
        stage = request.args.get("stage")
        return ReleaseRequested(
            at=at, stimulus=stimulus, stage=None if stage is None else Stage(stage)
        )
    if request.kind == PRIORITY:
        priority = int(request.args["priority"])
        if abs(priority) > MOST_PRIORITY:
            raise ValueError(f"a priority lies between -{MOST_PRIORITY} and {MOST_PRIORITY}")
        return PriorityChanged(at=at, stimulus=stimulus, priority=priority)
    raise ValueError(f"unknown request {request.kind!r}")


def refused(request: Request, job: Job | None, *, silent: Collection[str], at: float) -> str:
    """Why it cannot be done, for the operator to read; "": it can. `silent`: hosts."""
    if job is None:
        return "no such job"
    if request.kind == ABANDON:
        return _not_abandoned(job, silent)
    if request.kind in DECISIONS:
        return "" if job.kind is JobKind.STITCH else "it is no stitch"
    try:
        step(job, event_of_request(request, at=at))
    except (IllegalTransition, StaleEvent):
        return _why_not(request, job)
    except (KeyError, ValueError) as error:
        return f"this dispatcher does not understand it: {error}"
    return ""


def decided(requests: Iterable[Request]) -> tuple[Decision, ...]:
    """What operators decided about pairs, of the requests that were accepted."""
    return tuple(
        Decision(
            id=request.id,
            at=request.created_at,
            by=str(request.args["by"]),
            verdict=Verdict(request.kind),
            source=str(request.args["source"]),
            target=str(request.args["target"]),
            points=tuple(
                (_point(here), _point(there)) for here, there in request.args.get("points", ())
            ),
            registrations=(
                str(request.args["registrations"][0]),
                str(request.args["registrations"][1]),
            ),
            length_m=float(request.args.get("length_m", 0.0)),
            give_or_take_m=float(request.args.get("give_or_take_m", 0.0)),
        )
        for request in requests
        if request.kind in DECISIONS and request.state == "done"
    )


def _point(values: Sequence[float]) -> Point:
    x, y, z = values
    return float(x), float(y), float(z)


def _not_abandoned(job: Job, silent: Collection[str]) -> str:
    if job.step not in LIVE_STEPS:
        return f"there is no attempt of it to give up: {_stands(job)}"
    if job.host not in silent:
        # There the old attempt and its successor would run at once.
        return f"{job.host} is not silent; end its attempt: cosma job cancel {job.id}"
    return ""


def _why_not(request: Request, job: Job) -> str:
    if job.state in TERMINAL:
        return f"it has ended: {job.state}; cosma job retry {job.id} runs it again"
    if request.kind == RETRY and job.step is Step.CANCEL:
        return "it is being cancelled; ask again once it is"
    if request.kind == RETRY and job.step is not Step.REST:
        return (
            f"{_stands(job)}; only a job that is held or has ended is released. To begin it anew: "
            f"cosma job cancel {job.id}, then cosma job retry {job.id}"
        )
    return f"that cannot be done where it stands: {_stands(job)}"


def _stands(job: Job) -> str:
    where = f" on {job.host}" if job.host is not None else ""
    return f"it is {job.state}" + ("" if job.state in TERMINAL else f" ({job.stage}{where})")
