"""What an operator's command asks of the dispatcher, as the event it stands for. Pure."""

from __future__ import annotations

from dispatcher.core.events import CancelRequested, Event, PriorityChanged, ReleaseRequested
from dispatcher.core.model import Stage
from dispatcher.store.rows import Request

CANCEL = "cancel"
RETRY = "retry"
PRIORITY = "priority"
ABANDON = "abandon"


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
        return PriorityChanged(at=at, stimulus=stimulus, priority=int(request.args["priority"]))
    raise ValueError(f"unknown request {request.kind!r}")
