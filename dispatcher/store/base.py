"""The store as the dispatcher sees it. One contract suite holds for every implementation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from dispatcher.core.breaker import Breaker
from dispatcher.core.events import Event
from dispatcher.core.model import Job, JobState, Reservation, Waiting
from dispatcher.core.need import Observation
from dispatcher.core.plan import SegmentView
from dispatcher.core.pool import PoolState
from dispatcher.errors import CosmaError
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
    Removal,
    Request,
    Run,
    Segment,
    Silence,
    StageMetrics,
    Stitch,
    StoredLog,
    Trim,
)
from worker_agent.protocol import ExitRecord


class StoreError(CosmaError):
    """The database cannot be opened, read or written."""


class StaleRevision(StoreError):
    """Another writer changed the job since it was read; read it again."""


class OffsetGap(StoreError):
    """A piece of a stream does not continue what is stored; watch again from `expected`."""

    def __init__(self, job: str, attempt: int, stream: str, expected: int, got: int) -> None:
        self.expected = expected
        super().__init__(
            f"{stream} of attempt {attempt} continues at byte {expected}, got byte {got}",
            where=job,
        )


class Store(Protocol):
    """State of the farm. Every write is one transaction; one process writes jobs.

    All methods raise StoreError when the database itself fails. Making something that exists is
    no error and changes nothing, so that every command can be repeated.
    """

    @classmethod
    async def open(cls, path: Path) -> Self: ...

    async def close(self) -> None: ...

    async def new_epoch(self, *, host: str, pid: int, at: float) -> int:
        """A number greater than any handed out before: hosts refuse a dispatcher with a lower.

        `at` (Unix seconds) sets its floor, so that it also orders dispatchers of two databases.
        """
        ...

    async def last_epoch(self) -> int:
        """The greatest number handed out; 0 before the first."""
        ...

    # --- what is to be done ---

    async def create_acquisition(self, row: Acquisition) -> bool:
        """True when it is new."""
        ...

    async def create_segment(self, segment: Segment, job: Job, run: Run) -> bool:
        """The segment, the job that reconstructs it and its config; True when they are new."""
        ...

    async def create_job(self, job: Job, run: Run) -> bool: ...

    async def acquisitions(self) -> list[Acquisition]: ...

    async def segments(
        self, *, acquisition: str | None = None, job: str | None = None
    ) -> list[Segment]: ...

    async def segment_views(self, acquisition: str) -> list[SegmentView]:
        """The same with the states of their jobs, and no more than planning stitches needs."""
        ...

    async def move_clips(self, job: str, moved: Mapping[str, str]) -> None:
        """The sources of a job's clips lie elsewhere now: old -> new."""
        ...

    async def run(self, job: str) -> Run | None: ...

    # --- jobs and attempts ---

    async def load_jobs(
        self, *, active_only: bool = False, acquisition: str | None = None
    ) -> list[Job]:
        """Oldest first. `active_only`: without done, error, held and cancelled ones."""
        ...

    async def new_jobs(self, after: int) -> tuple[int, list[Job]]:
        """Those made since a call that returned `after` (0: all), oldest first, and what to ask
        with next: it costs nothing how many are known."""
        ...

    async def job(self, job: str) -> Job | None: ...

    async def apply(
        self,
        before: Job,
        after: Job,
        event: Event,
        lease: Lease | None = None,
        record: ExitRecord | None = None,
    ) -> Applied:
        """Commit one transition, fenced by `before.revision`, durably (synchronous=FULL).

        Job, attempt (of this store's epoch), reservation, lease, stitch state and event change in
        one transaction; `before.revision` counts, the rest of `before` is what was compared with.
        `lease`: what the host will be told of a new attempt's (its length, 0: none; in which of its
        boots); without, the stage's own. `record`: what the host says of the attempt that the event
        ends, kept as by `finish_attempt`; `Applied.learned` is what it teaches.
        Raises StaleRevision when the stored job is no longer `before`.
        """
        ...

    async def attempts(self, job: str) -> list[Attempt]: ...

    async def finish_attempt(self, job: str, attempt: int, record: ExitRecord) -> None:
        """Keep the host's exit record, its metrics and the artifacts it lists. Idempotent."""
        ...

    async def stage_metrics(self, job: str | None = None) -> list[StageMetrics]: ...

    async def observations(self, *, newest: int) -> list[Observation]:
        """What runs took, oldest first; of each stage and device the `newest` ones. Only of those
        that succeeded by work of their own, or that ran out of memory."""
        ...

    async def observation(self, job: str, attempt: int) -> Observation | None:
        """The same of one attempt; None when it says nothing about needs."""
        ...

    async def leases(self) -> list[Lease]: ...

    async def renewed(
        self,
        attempts: Iterable[tuple[str, int]],
        at: float,
        *,
        monotonic: float | None = None,
        clock_boot: str | None = None,
    ) -> None:
        """Note that a renewal of these (job, attempt) is attempted and cannot arrive at their host
        after `monotonic`, on the clock of the boot `clock_boot` of this machine."""
        ...

    async def lease(self, job: str, attempt: int) -> Lease | None: ...

    # --- what survives a silence ---

    async def set_silence(self, host: str, since: float, message: str) -> None:
        """The first `since` is kept until `end_silence`."""
        ...

    async def end_silence(self, host: str) -> bool:
        """True when the host was silent."""
        ...

    async def silences(self) -> list[Silence]: ...

    async def set_findings(self, host: str, rows: Iterable[FindingRow]) -> None:
        """In place of those of the last comparison."""
        ...

    async def findings(self) -> list[FindingRow]: ...

    async def rebuild_reservation(self, reservation: Reservation) -> None:
        """Of a live attempt whose row is missing."""
        ...

    async def delete_reservation(self, job: str) -> None:
        """Of a job that has no live attempt."""
        ...

    async def delete_stray_leases(self) -> int:
        """Those of attempts without a reservation; returns how many."""
        ...

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
        """Store a piece of events.jsonl, of the log, or of both, each byte exactly once.

        What is stored already is dropped (of the log, also a part); raises OffsetGap when a piece
        begins after the end of what is stored, or an events piece begins in the midst of it.
        """
        ...

    async def attempt_offsets(self, job: str, attempt: int) -> Offsets: ...

    async def logs(self, job: str, attempt: int, *, offset: int = 0) -> bytes: ...

    async def stored_logs(self) -> list[StoredLog]: ...

    async def remove_logs(self, job: str) -> bool:
        """Of all its attempts, unless it has been taken up again; whether there were any."""
        ...

    async def set_progress(
        self, job: str, fraction: float, message: str, numbers: dict[str, Any], at: float
    ) -> None:
        """Written at most once a second; the last value always is."""
        ...

    async def progress(self) -> dict[str, Progress]:
        """By job."""
        ...

    async def set_waiting(self, changed: Mapping[str, Waiting | None]) -> None:
        """By job: what `cosma why` answers; None once the job waits no more."""
        ...

    async def waiting(self) -> dict[str, Waiting]:
        """By job."""
        ...

    # --- artifacts ---

    async def add_artifacts(
        self, job: str, rows: Iterable[ArtifactRow], *, durable: bool = True
    ) -> list[ArtifactRow]:
        """What a row does not say of where its copies lie stays as it was, unless its content is
        another than the one known. Not `durable`: at the latest with the next transition that
        is. Returns all of the job."""
        ...

    async def artifacts(
        self,
        *,
        job: str | None = None,
        acquisition: str | None = None,
        path: str | None = None,
        sha256: str | None = None,
    ) -> list[ArtifactRow]:
        """`path` is one on a host (relative to the run directory), in the artifact directory or in
        the object store."""
        ...

    async def results(self, job: str) -> tuple[Job | None, list[ArtifactRow]]:
        """The job and its `artifacts`, of one commit."""
        ...

    # --- stitches ---

    async def create_stitch(self, stitch: Stitch, job: Job | None, run: Run | None) -> bool:
        """With its job, unless it passes a single member through."""
        ...

    async def stitches(self, *, acquisition: str | None = None) -> list[Stitch]: ...

    async def stitch(self, id_or_job: str) -> Stitch | None: ...

    async def stitchable(
        self, acquisition: str, kinds: Sequence[str]
    ) -> tuple[list[SegmentView], list[Stitch], list[Request]]:
        """All that planning stitches needs, of one commit: `segment_views`, `stitches`, `requests`
        of these kinds."""
        ...

    async def update_stitch(
        self, stitch: str, *, state: JobState | None = None, report: dict[str, Any] | None = None
    ) -> None: ...

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
        """A fact that changes no job; returns its id. `at` defaults to now."""
        ...

    async def events(
        self,
        *,
        job: str | None = None,
        kind: str | None = None,
        host: str | None = None,
        after: int = 0,
        limit: int | None = None,
    ) -> list[EventRow]:
        """In the order they were stored, those with an id above `after`."""
        ...

    # --- hosts ---

    async def upsert_host(self, host: Host) -> None:
        """Keeps the last facts when it brings none, and the cordon of a host that is known."""
        ...

    async def set_cordoned(self, host: str, cordoned: bool, *, draining: bool = False) -> None:
        """The operator's word; `draining` means something for a cordoned host only."""
        ...

    async def cordons(self) -> dict[str, bool]:
        """Cordoned hosts; True for those that are to be drained."""
        ...

    async def save_breaker(self, breaker: Breaker) -> None: ...

    async def breakers(self) -> dict[str, Breaker]:
        """By host name or GPU UUID."""
        ...

    async def reset_breakers(self, host: str) -> int:
        """Forget those of a host and of its GPUs; how many there were."""
        ...

    async def save_thin_pool(self, state: PoolState) -> None:
        """Its `read_at` is wall clock here."""
        ...

    async def thin_pools(self) -> dict[str, PoolState]:
        """By key."""
        ...

    async def hosts(self) -> list[Host]: ...

    async def gpus(self, host: str | None = None) -> list[Gpu]: ...

    # --- disks of hosts ---

    async def add_removals(self, rows: Sequence[Removal]) -> None: ...

    async def untrimmed(self) -> dict[str, tuple[int, int]]:
        """By host: its last removal that no trim has followed, and the blocks of all of them."""
        ...

    async def add_trim(self, row: Trim, last: int) -> None:
        """One that worked also marks the host's removals up to `last`."""
        ...

    async def trims(self, host: str | None = None) -> list[Trim]: ...

    async def given_back(self, job: str) -> int | None:
        """Bytes of the job's removals that trims gave back; None before the first one worked."""
        ...

    # --- requests of other processes ---

    async def add_request(
        self, kind: str, *, job: str | None = None, args: dict[str, Any] | None = None
    ) -> int: ...

    async def pending_requests(self) -> list[Request]: ...

    async def requests(self, *, kinds: Sequence[str]) -> list[Request]:
        """Of these kinds, whatever became of them, in the order they were asked."""
        ...

    async def finish_request(self, request: int, answer: str, *, ok: bool = True) -> None: ...

    async def request(self, request: int) -> Request | None: ...
