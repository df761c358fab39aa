"""What is written down of an attempt's lease, and until when its host may have heard of it."""

from __future__ import annotations

from dispatcher.clock import Clock
from dispatcher.core.lease import last_attempted, lease_s
from dispatcher.core.model import Job
from dispatcher.store.base import Store
from dispatcher.store.rows import Lease


async def lease_of(store: Store, job: Job) -> Lease:
    """The lease of the job's live attempt; one that was lost counts from this moment."""
    known = await store.lease(job.id, job.attempt)
    return known or Lease(
        job=job.id,
        attempt=job.attempt,
        host=job.host or "",
        lease_s=lease_s(job.stage),
        renewed_at=0.0,
    )


def renewed_at(lease: Lease, clock: Clock) -> float:
    """Monotonic time after which no renewal of it can have arrived at its host."""
    return last_attempted(
        clock.monotonic(), lease.renewed_monotonic, same_boot=lease.clock_boot == clock.boot()
    )
