"""The store on one SQLite file in WAL mode: a writing thread and a reading one.

Readers see the last commit and never wait for the writer. A transition is committed with
synchronous=FULL; streams, progress and what else the hosts say again when asked with NORMAL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from dispatcher.clock import Clock, SystemClock
from dispatcher.core.breaker import Breaker
from dispatcher.core.events import (
    AttemptStarted,
    AttemptSucceeded,
    Event,
    InputsReady,
    InputsReclaimed,
    LeftoversReclaimed,
    MadeReclaimed,
)
from dispatcher.core.model import Job, Reservation, Waiting
from dispatcher.core.need import Observation
from dispatcher.core.plan import SegmentView
from dispatcher.core.pool import PoolState
from dispatcher.store import farm, jobs, pools, streams, survival
from dispatcher.store.base import StoreError
from dispatcher.store.connection import Database, Worker
from dispatcher.store.disk import DiskBooks
from dispatcher.store.logs import Logs
from dispatcher.store.rows import (
    Acquisition,
    Applied,
    ArtifactRow,
    Attempt,
    EventRow,
    FindingRow,
    Gpu,
    Host,
    Lease,
    Offsets,
    Progress,
    Request,
    Run,
    Segment,
    Silence,
    StageMetrics,
)
from dispatcher.store.stitches import Stitches
from dispatcher.store.streams import Piece
from worker_agent.protocol import ExitRecord

PROGRESS_INTERVAL_S = 1.0
# What the host says again when it is asked or told again: not lost with the power of this machine,
# and not waited for. What follows from one of them is committed with FULL, and it with that. Of
# a removal that a restarted dispatcher orders once more it says that nothing is there.
SAID_AGAIN = (
    AttemptStarted, AttemptSucceeded, InputsReady, InputsReclaimed, LeftoversReclaimed,
    MadeReclaimed,
)  # fmt: skip


class SqliteStore(DiskBooks, Logs, Stitches):
    """See `dispatcher.store.base.Store`. Use within one event loop; `close` when done."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self._clock = clock
        self._writer = Worker(path, "cosma-store-write")
        self._reader = Worker(path, "cosma-store-read")
        self._epoch = 0
        self._unwritten: dict[str, Progress] = {}
        self._flushed_at = float("-inf")

    @classmethod
    async def open(cls, path: Path, clock: Clock | None = None) -> Self:
        """Makes the file and its schema where they are missing. Raises StoreError."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                "cannot make the directory", where=str(path.parent), why=error.strerror or ""
            ) from None
        store = cls(path, clock or SystemClock())
        try:
            await store._writer.open(migrate=True)
            await store._reader.open(migrate=False)
        except BaseException:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        try:
            if self._unwritten:
                await self._flush()
        finally:
            await self._reader.close()
            await self._writer.close()

    async def new_epoch(self, *, host: str, pid: int, at: float) -> int:
        self._epoch = await self._writer.write(True, farm.new_epoch, host, pid, at)
        return self._epoch

    async def last_epoch(self) -> int:
        return await self._reader.read(farm.last_epoch)

    # --- what is to be done ---

    async def create_acquisition(self, row: Acquisition) -> bool:
        return await self._writer.write(True, jobs.create_acquisition, row)

    async def create_segment(self, segment: Segment, job: Job, run: Run) -> bool:
        return await self._writer.write(True, jobs.create_segment, segment, job, run)

    async def create_job(self, job: Job, run: Run) -> bool:
        return await self._writer.write(True, jobs.create_job, job, run)

    async def acquisitions(self) -> list[Acquisition]:
        return await self._reader.read(jobs.acquisitions)

    async def segments(
        self, *, acquisition: str | None = None, job: str | None = None
    ) -> list[Segment]:
        return await self._reader.read(jobs.segments, acquisition, job)

    async def segment_views(self, acquisition: str) -> list[SegmentView]:
        return await self._reader.read(jobs.segment_views, acquisition)

    async def move_clips(self, job: str, moved: Mapping[str, str]) -> None:
        await self._writer.write(True, jobs.move_clips, job, moved)

    async def run(self, job: str) -> Run | None:
        return await self._reader.read(jobs.run, job)

    # --- jobs and attempts ---

    async def load_jobs(
        self, *, active_only: bool = False, acquisition: str | None = None
    ) -> list[Job]:
        return await self._reader.read(
            jobs.load_jobs, active_only=active_only, acquisition=acquisition
        )

    async def job(self, job: str) -> Job | None:
        return await self._reader.read(jobs.load_job, job)

    async def results(self, job: str) -> tuple[Job | None, list[ArtifactRow]]:
        return await self._reader.read(jobs.results, job)

    async def new_jobs(self, after: int) -> tuple[int, list[Job]]:
        return await self._reader.read(jobs.new_jobs, after)

    async def apply(
        self,
        before: Job,
        after: Job,
        event: Event,
        lease: Lease | None = None,
        record: ExitRecord | None = None,
    ) -> Applied:
        if after.reservation != before.reservation:
            self._unwritten.pop(before.id, None)  # it speaks of an attempt that is over
        return await self._writer.write(
            not isinstance(event, SAID_AGAIN), jobs.apply, before, after, event, self._epoch, lease,
            record,
        )  # fmt: skip

    async def attempts(self, job: str) -> list[Attempt]:
        return await self._reader.read(jobs.attempts, job)

    async def finish_attempt(self, job: str, attempt: int, record: ExitRecord) -> None:
        await self._writer.write(False, jobs.finish_attempt, job, attempt, record)

    async def stage_metrics(self, job: str | None = None) -> list[StageMetrics]:
        return await self._reader.read(jobs.stage_metrics, job)

    async def observations(self, *, newest: int) -> list[Observation]:
        return await self._reader.read(jobs.observations, newest)

    async def observation(self, job: str, attempt: int) -> Observation | None:
        return await self._reader.read(jobs.observation, job, attempt)

    async def leases(self) -> list[Lease]:
        return await self._reader.read(survival.leases)

    async def renewed(
        self,
        attempts: Iterable[tuple[str, int]],
        at: float,
        *,
        monotonic: float | None = None,
        clock_boot: str | None = None,
    ) -> None:
        await self._writer.write(
            False, survival.renewed, tuple(attempts), at, monotonic, clock_boot
        )

    async def lease(self, job: str, attempt: int) -> Lease | None:
        return await self._reader.read(survival.lease, job, attempt)

    # --- what survives a silence ---

    async def set_silence(self, host: str, since: float, message: str) -> None:
        await self._writer.write(False, survival.set_silence, host, since, message)

    async def end_silence(self, host: str) -> bool:
        return await self._writer.write(False, survival.end_silence, host)

    async def silences(self) -> list[Silence]:
        return await self._reader.read(survival.silences)

    async def set_findings(self, host: str, rows: Iterable[FindingRow]) -> None:
        await self._writer.write(False, survival.set_findings, host, tuple(rows))

    async def findings(self) -> list[FindingRow]:
        return await self._reader.read(survival.findings)

    async def rebuild_reservation(self, reservation: Reservation) -> None:
        await self._writer.write(True, survival.rebuild_reservation, reservation)

    async def delete_reservation(self, job: str) -> None:
        await self._writer.write(True, survival.delete_reservation, job)

    async def delete_stray_leases(self) -> int:
        return await self._writer.write(True, survival.delete_stray_leases)

    # --- streams ---

    async def append_stream(
        self,
        job: str,
        attempt: int,
        *,
        events: Sequence[dict[str, Any]] = (),
        events_from: int | None = None,
        events_to: int | None = None,
        log: bytes = b"",
        log_from: int | None = None,
        log_to: int | None = None,
    ) -> Offsets:
        piece = Piece(
            events=events,
            events_from=events_from,
            events_to=events_to,
            log=log,
            log_from=log_from,
            log_to=log_to,
        )
        return await self._writer.write(
            False, streams.append, job, attempt, piece, self._clock.now()
        )

    async def attempt_offsets(self, job: str, attempt: int) -> Offsets:
        return await self._reader.read(streams.offsets, job, attempt)

    async def set_progress(
        self, job: str, fraction: float, message: str, numbers: dict[str, Any], at: float
    ) -> None:
        self._unwritten[job] = Progress(
            fraction=fraction, message=message, numbers=numbers, updated_at=at
        )
        if self._clock.monotonic() - self._flushed_at >= PROGRESS_INTERVAL_S:
            await self._flush()

    async def _flush(self) -> None:
        latest, self._unwritten = self._unwritten, {}
        self._flushed_at = self._clock.monotonic()
        await self._writer.write(False, _write_progress, latest)

    async def progress(self) -> dict[str, Progress]:
        return {**await self._reader.read(streams.progress), **self._unwritten}

    async def set_waiting(self, changed: Mapping[str, Waiting | None]) -> None:
        await self._writer.write(False, jobs.set_waiting, changed)

    async def waiting(self) -> dict[str, Waiting]:
        return await self._reader.read(jobs.waiting)

    # --- artifacts ---

    async def add_artifacts(
        self, job: str, rows: Iterable[ArtifactRow], *, durable: bool = True
    ) -> list[ArtifactRow]:
        return await self._writer.write(durable, jobs.add_artifacts, job, tuple(rows))

    async def artifacts(
        self,
        *,
        job: str | None = None,
        acquisition: str | None = None,
        path: str | None = None,
        sha256: str | None = None,
    ) -> list[ArtifactRow]:
        return await self._reader.read(jobs.artifacts, job, acquisition, path, sha256)

    # --- events ---

    async def record_event(
        self,
        kind: str,
        *,
        job: str | None = None,
        attempt: int | None = None,
        host: str | None = None,
        payload: dict[str, Any] | None = None,
        stimulus: str = "",
        at: float | None = None,
    ) -> str:
        return await self._writer.write(
            False,
            streams.record_event,
            kind,
            job=job,
            attempt=attempt,
            host=host,
            payload=payload or {},
            stimulus=stimulus,
            at=self._clock.now() if at is None else at,
        )

    async def events(
        self,
        *,
        job: str | None = None,
        kind: str | None = None,
        host: str | None = None,
        after: int = 0,
        limit: int | None = None,
    ) -> list[EventRow]:
        return await self._reader.read(
            streams.events, job=job, kind=kind, host=host, after=after, limit=limit
        )

    # --- hosts ---

    async def upsert_host(self, host: Host) -> None:
        await self._writer.write(False, farm.upsert_host, host)

    async def set_cordoned(self, host: str, cordoned: bool, *, draining: bool = False) -> None:
        await self._writer.write(
            True, farm.set_cordoned, host, cordoned, draining, self._clock.now()
        )

    async def cordons(self) -> dict[str, bool]:
        return await self._reader.read(farm.cordons)

    async def save_breaker(self, breaker: Breaker) -> None:
        await self._writer.write(True, farm.save_breaker, breaker)

    async def breakers(self) -> dict[str, Breaker]:
        return await self._reader.read(farm.breakers)

    async def reset_breakers(self, host: str) -> int:
        return await self._writer.write(True, farm.reset_breakers, host)

    async def save_thin_pool(self, state: PoolState) -> None:
        await self._writer.write(False, pools.save_thin_pool, state)

    async def thin_pools(self) -> dict[str, PoolState]:
        return await self._reader.read(pools.thin_pools)

    async def hosts(self) -> list[Host]:
        return await self._reader.read(farm.hosts)

    async def gpus(self, host: str | None = None) -> list[Gpu]:
        return await self._reader.read(farm.gpus, host)

    # --- requests of other processes ---

    async def add_request(
        self, kind: str, *, job: str | None = None, args: dict[str, Any] | None = None
    ) -> int:
        return await self._writer.write(
            True, farm.add_request, kind, job, args or {}, self._clock.now()
        )

    async def pending_requests(self) -> list[Request]:
        return await self._reader.read(farm.requests, request=None, state="pending")

    async def requests(self, *, kinds: Sequence[str]) -> list[Request]:
        return await self._reader.read(farm.requests_of, tuple(kinds))

    async def finish_request(self, request: int, answer: str, *, ok: bool = True) -> None:
        await self._writer.write(True, farm.finish_request, request, answer, ok, self._clock.now())

    async def request(self, request: int) -> Request | None:
        found = await self._reader.read(farm.requests, request=request, state=None)
        return found[0] if found else None


def _write_progress(db: Database, latest: dict[str, Progress]) -> None:
    for job, value in latest.items():
        streams.set_progress(
            db, job, value.fraction, value.message, value.numbers, value.updated_at
        )
