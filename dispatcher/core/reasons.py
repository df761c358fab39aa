"""Why a job waits, in words: the first failing test of each host, the nearest host first. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from dispatcher.core.ledger import Refusal
from dispatcher.core.model import Job, Reason, Waiting

# How near a host was to taking the job: the nearest one gives the job its reason.
_NEARNESS = (
    Reason.HOST_DRAINING,
    Reason.HOST_CORDONED,
    Reason.HOST_NOT_READY,
    Reason.PROBE_STALE,
    Reason.NO_GPU_FITS,
    Reason.RAM_TOO_SMALL,
    Reason.HOST_QUARANTINED,
    Reason.GPU_QUARANTINED,
    Reason.POOL_UNKNOWN,
    Reason.POOL_FULL,
    Reason.DISK_LOW,
    Reason.SLOT_BUSY,
    Reason.CPU_BUSY,
    Reason.RAM_LOW,
    Reason.GPU_BUSY,
)
_RANK = {reason: rank for rank, reason in enumerate(_NEARNESS)}


def backoff(job: Job, now: float) -> Waiting:
    after = f" after {job.reason}: {job.message}" if job.reason is not None else ""
    return Waiting(
        job=job.id,
        reason=Reason.BACKOFF,
        message=f"tries again in {job.not_before - now:.0f} s{after}",
        per_host={job.host: "waits for its delay to pass"} if job.host else {},
    )


def no_host(job: Job) -> Waiting:
    return Waiting(
        job=job.id,
        reason=Reason.NO_HOST,
        message="the inventory has no host (cosma worker add)",
    )


def lost_host(job: Job) -> Waiting:
    gone = (Reason.NO_HOST, "is no longer in the inventory; add it again or cancel the job")
    return waiting(job, {job.host or "": gone})


def waiting(job: Job, refusals: Mapping[str, Refusal]) -> Waiting:
    """`refusals`: by host, at least one."""
    order = sorted(refusals, key=lambda name: (-_RANK.get(refusals[name][0], -1), len(name), name))
    shown = "; ".join(f"{name}: {refusals[name][1]}" for name in order[:3])
    more = f"; and {len(order) - 3} more hosts" if len(order) > 3 else ""
    return Waiting(
        job=job.id,
        reason=refusals[order[0]][0],
        message=shown + more,
        per_host={name: f"{name}: {refusals[name][1]}" for name in order},
    )
