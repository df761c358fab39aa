"""Lease arithmetic: durations on a monotonic clock, so that no two clocks must agree.

The agent ends its own stage `lease_s` after the last renewal it received. The dispatcher cannot
know which renewal that was, so it counts from the last one it tried to send: an attempt without
an answer may have arrived.
"""

from __future__ import annotations

import math

from dispatcher.core.model import Stage

KILL_GRACE_S = 10.0  # between TERM and KILL on the host, with room for a slow machine
MARGIN_S = 30.0  # clock drift and a suspended supervisor
RENEWALS_PER_LEASE = 3

# Long stages lose more when a lease ends, so theirs outlast a longer outage of the link.
STAGE_LEASE_S: dict[Stage, float] = {
    Stage.VALIDATION: 600.0,
    Stage.FRAME_EXTRACTION: 600.0,
    Stage.METADATA_EXTRACTION: 600.0,
    Stage.MANIFEST_GENERATION: 600.0,
    Stage.COLMAP_RECONSTRUCTION: 1800.0,
    Stage.TRAINING: 1800.0,
    Stage.PLY_EXPORT: 600.0,
    Stage.SPLAT_EXPORT: 600.0,
    Stage.STITCH: 1800.0,
}


def lease_s(stage: Stage) -> float:
    """Seconds an attempt of `stage` may run without hearing from the dispatcher."""
    return STAGE_LEASE_S[stage]


def renew_at(last_renewal_attempted: float, lease_s: float) -> float:
    """Monotonic time of the next renewal: early enough that two may be lost."""
    return last_renewal_attempted + lease_s / RENEWALS_PER_LEASE


def renew_due(last_renewal_attempted: float, lease_s: float, now: float) -> bool:
    """Never for an attempt without a lease (`lease_s` 0)."""
    return lease_s > 0 and now >= renew_at(last_renewal_attempted, lease_s)


def last_attempted(now: float, stored: float | None, *, same_boot: bool) -> float:
    """Monotonic time no renewal can have arrived after, as a restarted dispatcher knows it.

    `stored` is what the one before wrote down: its clock is this one's only within one boot of
    the machine. Else one may have arrived this moment, for all that is known.
    """
    return stored if same_boot and stored is not None else now


def may_requeue_at(
    last_renewal_attempted: float, lease_s: float, grace_s: float = KILL_GRACE_S + MARGIN_S
) -> float:
    """Monotonic time from which an attempt on a silent host is certainly dead; without a lease
    (`lease_s` 0) no silence ever proves that."""
    if lease_s <= 0:
        return math.inf
    return last_renewal_attempted + lease_s + grace_s
