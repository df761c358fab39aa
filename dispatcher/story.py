"""What the operator reads while the dispatcher works: one line per change of a job."""

from __future__ import annotations

import logging

from dispatcher.core.events import (
    AttemptFailed,
    Event,
    HandedOver,
    HandoffAbandoned,
    HostAssigned,
    InputsKept,
    InputsReclaimed,
    LeftoversReclaimed,
    MadeReclaimed,
    PlanReduced,
    ReclaimFailed,
    StagePlaced,
)
from dispatcher.core.model import Job, JobState
from dispatcher.core.work_size import smaller_words

log = logging.getLogger("cosma")


def tell(before: Job, after: Job, event: Event) -> None:
    line = _line(before, after, event)
    if line:
        log.info("%s: %s", after.id, line)
    else:
        log.debug("%s: %s, step %s", after.id, type(event).__name__, after.step)


def _line(before: Job, after: Job, event: Event) -> str:
    if after.state in (JobState.HELD, JobState.ERROR) and before.state is not after.state:
        return f"{after.state}: {after.reason}: {after.message}. {after.advice}"
    if after.state is not before.state and after.state in (JobState.DONE, JobState.CANCELLED):
        return str(after.state)
    match event:
        case HostAssigned():
            return f"claimed by {event.host}"
        case StagePlaced():
            gpu = f" ({event.reservation.gpu})" if event.reservation.gpu else ""
            return f"{after.stage} on {event.reservation.host}{gpu}, attempt {after.attempt}"
        case HandedOver():
            note = f" ({event.note})" if event.note else ""
            return (
                f"goes on at {event.stage} on {after.host} with {event.files} files, "
                f"{event.bytes} bytes of {event.source}, {event.route}{note}"
            )
        case HandoffAbandoned():
            return f"starts over on {after.host}: {event.message}"
        case AttemptFailed():
            again = f"; trying again in {max(0.0, after.not_before - event.at):.0f} s"
            if after.shrink > before.shrink:
                again += f" with a smaller plan (step {after.shrink})"
            elif after.stride > before.stride:
                again += f" with every {after.stride}. frame only"
            elif after.need_ram_mib != before.need_ram_mib:
                again += f" where {after.need_ram_mib} MiB of RAM are free"
            elif after.need_mib != before.need_mib:
                again += f" where {after.need_mib} MiB are free"
            return f"{event.reason}: {event.message}{again}"
        case PlanReduced():
            return f"{smaller_words(after)}, so that it fits: {event.message}"
        case InputsReclaimed():
            return f"{event.removed_bytes} bytes of source removed from {event.host}"
        case InputsKept():
            return f"its source stays on {event.host} (source_videos: {event.rule})"
        case MadeReclaimed():
            kinds = ", ".join(event.kinds)
            return f"{event.removed_bytes} bytes of {kinds} removed from {event.host}"
        case LeftoversReclaimed():
            return f"{event.removed_bytes} bytes removed from {event.host}, which it has left"
        case ReclaimFailed():
            return f"not removed from {event.host}: {event.message}"
        case _:
            return ""
