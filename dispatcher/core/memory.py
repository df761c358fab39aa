"""Whose a device's memory is, each MiB once. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dispatcher.core.model import Job, Reservation
from dispatcher.core.views import GpuView


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    whose: str  # "Training of JOB", or the process that is not ours
    mib: int
    job: str | None = None  # one of ours
    used_mib: int = 0  # of a promise, what the device already shows


def shares(gpu: GpuView, jobs: Iterable[Job]) -> tuple[Share, ...]:
    """Promises and own use first, in the order of jobs; then others. `jobs`: those that have a
    reservation on the device, or whose attempt the device shows."""
    found = []
    own = dict(gpu.own_mib)
    for job in jobs:
        promise = job.reservation
        if promise is not None and promise.gpu == gpu.uuid:
            used = own.pop((job.id, promise.attempt), 0)
            found.append(
                Share(
                    whose=f"{job.stage} of {job.id}",
                    mib=max(promise.mib, used),
                    job=job.id,
                    used_mib=used,
                )
            )
    found += [
        Share(whose=f"attempt {attempt} of {job}, which no reservation covers", mib=mib, job=job,
              used_mib=mib)
        for (job, attempt), mib in sorted(own.items())
    ]  # fmt: skip
    found += [Share(whose=whose, mib=mib) for whose, mib in gpu.holders]
    # What a CPU's "device" has less of is the host's RAM, and nobody says whose.
    seen = gpu.total_mib - gpu.free_mib - sum(gpu.own_mib.values())
    unnamed = max(gpu.foreign_mib, seen) - sum(mib for _, mib in gpu.holders)
    if unnamed > 0:
        found.append(Share(whose="others", mib=unnamed))
    return tuple(found)


def materialised(
    promised: dict[tuple[str, int], int], seen: dict[tuple[str, int], int]
) -> tuple[int, int, int]:
    """MiB: promised or used under a promise; promised and not yet used; used without one."""
    reserved = sum(max(mib, seen.get(key, 0)) for key, mib in promised.items())
    unused = sum(max(0, mib - seen.get(key, 0)) for key, mib in promised.items())
    return reserved, unused, sum(mib for key, mib in seen.items() if key not in promised)


def promised_to(promises: Iterable[Reservation], what: str, gpu: str | None = None) -> str:
    """In words: whose promises have some of `what`, a field in MiB; only those of the GPU."""
    jobs = sorted(
        one.job for one in promises if getattr(one, what) and (gpu is None or one.gpu == gpu)
    )
    return f" by {', '.join(jobs[:4])}{' ...' if len(jobs) > 4 else ''}" if jobs else ""
