"""What the silence of a host puts at risk: whose work, how much of it, until when. Pure but for
`load_risks`, so that any process can say it while the dispatcher waits."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dispatcher.core.lease import may_requeue_at
from dispatcher.core.machine import LIVE_STEPS
from dispatcher.core.model import Job
from dispatcher.store.base import Store
from dispatcher.store.rows import Attempt, Lease, Progress, Silence


@dataclass(frozen=True, slots=True, kw_only=True)
class Risk:
    """One live attempt of a silent host. Times are wall-clock Unix seconds."""

    host: str
    job: str
    stage: str
    attempt: int
    silent_since: float
    requeue_at: float | None  # None: never by itself, the operator decides
    fraction: float | None  # of the stage, when it was last heard of
    work_s: float  # wall time of the stage by then
    why: str

    def line(self, now: float) -> str:
        """One line for an operator at wall time `now`."""
        share = "an unknown share" if self.fraction is None else f"{self.fraction:.0%}"
        if self.requeue_at is None:
            then = f"never requeued by itself: cosma job retry {self.job} --abandon"
        elif self.requeue_at <= now:
            then = "due to be requeued now, if a dispatcher runs"
        else:
            left = math.ceil(self.requeue_at - now)
            then = f"requeued at {_clock(self.requeue_at)} (in {left // 60:02d}:{left % 60:02d})"
        return (
            f"{self.host} silent since {_clock(self.silent_since)}: {self.stage} of {self.job}, "
            f"{share} done after {self.work_s:.0f} s, is {then}"
        )


def risks(
    silences: Iterable[Silence],
    jobs: Iterable[Job],
    leases: Iterable[Lease],
    attempts: Mapping[str, Attempt],
    progress: Mapping[str, Progress],
) -> list[Risk]:
    """By host, in the order of `silences`. `attempts`: job -> its live attempt."""
    by_attempt = {(lease.job, lease.attempt): lease for lease in leases}
    live = [job for job in jobs if job.step in LIVE_STEPS]
    return [
        _risk(
            silence,
            job,
            by_attempt.get((job.id, job.attempt)),
            attempts.get(job.id),
            progress.get(job.id),
        )
        for silence in silences
        for job in live
        if job.host == silence.host
    ]


def _risk(
    silence: Silence,
    job: Job,
    lease: Lease | None,
    attempt: Attempt | None,
    progress: Progress | None,
) -> Risk:
    requeue_at = math.inf if lease is None else may_requeue_at(lease.renewed_at, lease.lease_s)
    began = attempt.started_at if attempt is not None else None
    return Risk(
        host=silence.host,
        job=job.id,
        stage=job.stage.value,
        attempt=job.attempt,
        silent_since=silence.since,
        requeue_at=None if math.isinf(requeue_at) else requeue_at,
        fraction=None if progress is None else progress.fraction,
        work_s=0.0 if began is None else max(0.0, silence.since - began),
        why=silence.message,
    )


async def load_risks(store: Store) -> list[Risk]:
    silences = await store.silences()
    if not silences:
        return []
    silent = {silence.host for silence in silences}
    jobs = [job for job in await store.load_jobs(active_only=True) if job.host in silent]
    attempts = {
        job.id: attempt
        for job in jobs
        for attempt in await store.attempts(job.id)
        if attempt.attempt == job.attempt
    }
    return risks(silences, jobs, await store.leases(), attempts, await store.progress())


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))
