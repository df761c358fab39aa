"""Jobs that wait for what no host of this farm has: done with fewer frames, or held. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from dispatcher.core.model import FramesThinned, Job, Reason, TransferFailed, Waiting
from dispatcher.core.policy import Policy
from dispatcher.core.thinning import strides_that_fit
from dispatcher.core.views import HostView

# Waiting that ends by itself, so that a draining dispatcher must not give up on it.
PASSING = frozenset(
    {
        Reason.BACKOFF,
        Reason.GPU_BUSY,
        Reason.SLOT_BUSY,
        Reason.CPU_BUSY,
        Reason.RAM_LOW,
        Reason.DECODER_BUSY,
        Reason.PROBE_STALE,
        Reason.HOST_QUARANTINED,
        Reason.GPU_QUARANTINED,
    }
)
# Of a device that is the host's RAM, too.
TOO_LARGE = frozenset({Reason.RAM_TOO_SMALL, Reason.NO_GPU_FITS})


def thinned(
    waiting: Iterable[Waiting],
    jobs: Mapping[str, Job],
    hosts: Callable[[], Iterable[HostView]],
    policy: Policy,
    at: float,
) -> dict[str, FramesThinned]:
    """By job: what none of `hosts` has the RAM for gets done with fewer frames."""
    too_large = {one.job: one.message for one in waiting if one.reason in TOO_LARGE}
    if not too_large:
        return {}
    found = strides_that_fit([jobs[job] for job in too_large], hosts(), policy)
    return {
        job: FramesThinned(at=at, stride=stride, message=too_large[job])
        for job, stride in found.items()
    }


def given_up(waiting: Iterable[Waiting], at: float) -> dict[str, TransferFailed]:
    """By job: what no host can take is held, with the reason it waits for."""
    return {
        one.job: TransferFailed(at=at, reason=one.reason, message=one.message)
        for one in waiting
        if one.reason not in PASSING
    }
