"""Jobs that wait for what no host of this farm has. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from dispatcher.core.events import TransferFailed
from dispatcher.core.model import Reason, Waiting

# Waiting that ends by itself, so that a draining dispatcher must not give up on it.
PASSING = frozenset(
    {
        Reason.BACKOFF,
        Reason.GPU_BUSY,
        Reason.SLOT_BUSY,
        Reason.CPU_BUSY,
        Reason.RAM_LOW,
        Reason.PROBE_STALE,
        Reason.HOST_QUARANTINED,
        Reason.GPU_QUARANTINED,
    }
)
# Of a device that is the host's RAM, too.
TOO_LARGE = frozenset({Reason.RAM_TOO_SMALL, Reason.NO_GPU_FITS})


def too_large(waiting: Iterable[Waiting]) -> dict[str, str]:
    """Job -> message of those that no host can hold by their own plan."""
    return {one.job: one.message for one in waiting if one.reason in TOO_LARGE}


def given_up(waiting: Iterable[Waiting], at: float) -> dict[str, TransferFailed]:
    """By job: what no host can take is held, with the reason it waits for."""
    return {
        one.job: TransferFailed(at=at, reason=one.reason, message=one.message)
        for one in waiting
        if one.reason not in PASSING
    }
