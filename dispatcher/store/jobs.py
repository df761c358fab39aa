"""Jobs, their transitions and attempts: functions that run inside one transaction."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from dispatcher.core.events import AttemptFailed, AttemptStarted, AttemptSucceeded, Event
from dispatcher.core.lease import lease_s
from dispatcher.core.model import Job, JobKind, Waiting
from dispatcher.core.need import GPU_STAGES, Observation
from dispatcher.core.plan import SegmentView
from dispatcher.core.work_size import ran
from dispatcher.store import codec
from dispatcher.store.base import StaleRevision, StoreError
from dispatcher.store.connection import Database
from dispatcher.store.rows import (
    Acquisition,
    Applied,
    ArtifactRow,
    Attempt,
    Lease,
    Run,
    Segment,
    StageMetrics,
)
from worker_agent.protocol import ExitRecord

_WORD = re.compile(r"(?<!^)(?=[A-Z])")


def kind_of(event: Event) -> str:
    """AttemptFailed -> attempt_failed."""
    return _WORD.sub("_", type(event).__name__).lower()


# --- what is to be done ---


def create_acquisition(db: Database, row: Acquisition) -> bool:
    return db.change("insert_acquisition", **codec.columns(row)) == 1


def create_job(db: Database, job: Job, run: Run) -> bool:
    if job.reservation is not None or job.attempt or job.revision:
        raise StoreError("a new job has no attempt yet", where=job.id)
    if run.job != job.id:
        raise StoreError(f"the run belongs to job {run.job}", where=job.id)
    if db.change("insert_job", **codec.job_values(job)) == 0:
        return False
    values = dataclasses.asdict(run)
    values.update(config=codec.to_json(run.config), provenance=codec.to_json(run.provenance))
    db.change("insert_run", **values)
    return True


def create_segment(db: Database, segment: Segment, job: Job, run: Run) -> bool:
    if segment.job != job.id:
        raise StoreError(f"the segment belongs to job {segment.job}", where=job.id)
    if not create_job(db, job, run):
        return False
    values = dataclasses.asdict(segment)
    values["clips"] = codec.to_json(values["clips"])
    db.change("insert_segment", **values)
    return True


def acquisitions(db: Database) -> list[Acquisition]:
    return [codec.acquisition_of(row) for row in db.rows("select_acquisitions")]


def segments(db: Database, acquisition: str | None, job: str | None) -> list[Segment]:
    return [
        codec.segment_of(row)
        for row in db.rows("select_segments", acquisition=acquisition, job=job)
    ]


def segment_views(db: Database, acquisition: str) -> list[SegmentView]:
    return [
        codec.segment_view_of(row)
        for row in db.rows("select_segment_views", acquisition=acquisition)
    ]


def move_clips(db: Database, job: str, moved: Mapping[str, str]) -> None:
    for segment in segments(db, None, job):
        clips = [
            {**dataclasses.asdict(clip), "source": moved.get(clip.source, clip.source)}
            for clip in segment.clips
        ]
        db.change("update_clips", id=segment.id, clips=codec.to_json(clips))


def run(db: Database, job: str) -> Run | None:
    row = db.row("select_run", job=job)
    return codec.run_of(row) if row is not None else None


# --- jobs ---


def load_jobs(db: Database, *, active_only: bool, acquisition: str | None) -> list[Job]:
    rows = db.rows("select_jobs", acquisition=acquisition, active_only=active_only)
    return [codec.job_of(row) for row in rows]


def load_job(db: Database, job: str) -> Job | None:
    row = db.row("select_job", job=job)
    return codec.job_of(row) if row is not None else None


def _one_job(db: Database, job: str) -> Job:
    found = load_job(db, job)
    if found is None:
        raise StoreError("there is no such job", where=job)
    return found


def new_jobs(db: Database, after: int) -> tuple[int, list[Job]]:
    """By the order of the rows: no job is ever deleted."""
    found = [(int(row["position"]), row["id"]) for row in db.rows("select_new_jobs", after=after)]
    if not found:
        return after, []
    if after == 0:
        return found[-1][0], load_jobs(db, active_only=False, acquisition=None)
    made = [_one_job(db, job) for _, job in found]
    return found[-1][0], sorted(made, key=lambda job: (job.created_at, job.id))


def apply(
    db: Database,
    before: Job,
    after: Job,
    event: Event,
    epoch: int,
    lease: Lease | None,
    record: ExitRecord | None,
) -> Applied:
    """One transition. Raises StaleRevision and changes nothing when `before` is outdated."""
    if before.id != after.id:
        raise StoreError(f"the transition leads to another job, {after.id}", where=before.id)
    if record is not None:
        finish_attempt(db, before.id, record.attempt, record)
    values = codec.job_values(after)
    values["revision"] = before.revision
    if db.change("update_job", **values) == 0:
        raise StaleRevision(
            f"the job is no longer at revision {before.revision}",
            where=before.id,
            fix="read it again; another process may work on this database",
        )
    stimulus = db.insert(
        "insert_event",
        at=event.at,
        kind=kind_of(event),
        job=after.id,
        attempt=getattr(event, "attempt", after.attempt or None),
        host=after.host or before.host,
        payload=codec.to_json(codec.event_payload(event)),
        stimulus=event.stimulus,
        source="dispatcher",
    )
    _reserve(db, before, after, event, epoch, lease)
    if isinstance(event, AttemptStarted):
        db.change("acknowledge_attempt", job=after.id, attempt=event.attempt, at=event.at)
    if after.state != before.state and after.kind is JobKind.STITCH:
        db.change("mirror_stitch_state", job=after.id, state=after.state)
    stored = dataclasses.replace(after, revision=before.revision + 1)
    learned = observation(db, after.id, record.attempt) if record is not None else None
    return Applied(stored, str(stimulus), learned)


def _reserve(
    db: Database, before: Job, after: Job, event: Event, epoch: int, lease: Lease | None
) -> None:
    """Make the rows of attempt, reservation and lease say what `after.reservation` says."""
    old, new = before.reservation, after.reservation
    if old == new:
        return
    if old is not None:
        db.change("delete_reservation", job=before.id)
        db.change("delete_lease", job=before.id, attempt=old.attempt)
        db.change("end_attempt", job=before.id, attempt=old.attempt, at=event.at, **_ending(event))
    if new is not None:
        db.change(
            "insert_attempt",
            job=after.id,
            attempt=new.attempt,
            stage=after.stage,
            host=new.host,
            gpu=new.gpu,
            epoch=epoch,
            committed_at=event.at,
            stimulus=event.stimulus,
        )
        db.change("insert_reservation", **codec.columns(new))
        db.change(
            "insert_lease",
            job=after.id,
            attempt=new.attempt,
            host=new.host,
            lease_s=lease_s(after.stage) if lease is None else lease.lease_s,
            host_boot=None if lease is None else lease.host_boot,
            renewed_at=event.at,
            renewed_monotonic=None if lease is None else lease.renewed_monotonic,
            clock_boot=None if lease is None else lease.clock_boot,
        )
        # What is said of the last stage does not hold for this one.
        db.change("delete_progress", job=after.id)
        db.change("delete_waiting", job=after.id)


def _ending(event: Event) -> dict[str, Any]:
    ending: dict[str, Any] = {
        "state": "cancelled", "resumed": False, "reason": None, "message": "", "evidence": "{}",
    }  # fmt: skip
    if isinstance(event, AttemptSucceeded):
        ending.update(state="succeeded", resumed=event.resumed)
    elif isinstance(event, AttemptFailed):
        ending.update(
            state="failed",
            reason=event.reason,
            message=event.message,
            evidence=codec.to_json(event.evidence),
        )
    return ending


def set_waiting(db: Database, changed: Mapping[str, Waiting | None]) -> None:
    for job, waiting in changed.items():
        if waiting is None:
            db.change("delete_waiting", job=job)
            continue
        db.change(
            "upsert_waiting",
            job=job,
            reason=waiting.reason,
            message=waiting.message,
            per_host=codec.to_json(waiting.per_host),
        )


def waiting(db: Database) -> dict[str, Waiting]:
    return {row["job"]: codec.waiting_of(row) for row in db.rows("select_waiting")}


# --- attempts ---


def attempts(db: Database, job: str) -> list[Attempt]:
    return [codec.attempt_of(row) for row in db.rows("select_attempts", job=job)]


def attempt(db: Database, job: str, number: int) -> Attempt:
    row = db.row("select_attempt", job=job, attempt=number)
    if row is None:
        raise StoreError(f"there is no attempt {number}", where=job)
    return codec.attempt_of(row)


def finish_attempt(db: Database, job: str, number: int, record: ExitRecord) -> None:
    known = attempt(db, job, number)
    db.change("keep_exit", job=job, attempt=number, exit=record.to_json())
    outcome = record.outcome
    metrics = outcome.metrics if outcome is not None else {}
    shape = ran(_one_job(db, job), known.stage, metrics)
    # One whose decoder alone was used is not what the stage's needs depend on.
    device = None
    if known.stage in GPU_STAGES:
        device = db.row("select_device", host=known.host, gpu=known.gpu)
    db.change(
        "upsert_stage_metrics",
        job=job,
        attempt=number,
        stage=known.stage,
        host=known.host,
        gpu=known.gpu,
        device=device["name"] if device is not None else "",
        **codec.columns(shape),
        wall_s=record.wall_s,
        cpu_s=record.cpu_s,
        peak_rss_mib=record.peak_rss_mib,
        peak_vram_mib=record.peak_vram_mib,
        peak_disk_bytes=record.peak_disk_bytes,
        metrics=codec.to_json(metrics),
    )
    files = outcome.artifacts if outcome is not None else ()
    _put_artifacts(
        db,
        job,
        [
            ArtifactRow(
                job=job,
                kind=file.kind,
                path=file.path,
                bytes=file.bytes,
                sha256=file.sha256,
                host=known.host,
                attempt=number,
            )
            for file in files
        ],
    )


def stage_metrics(db: Database, job: str | None) -> list[StageMetrics]:
    return [codec.metrics_of(row) for row in db.rows("select_stage_metrics", job=job)]


def observations(db: Database, newest: int) -> list[Observation]:
    return [codec.observation_of(row) for row in db.rows("select_observations", newest=newest)]


def observation(db: Database, job: str, number: int) -> Observation | None:
    row = db.row("select_observation", job=job, attempt=number)
    return codec.observation_of(row) if row is not None else None


# --- artifacts ---


def add_artifacts(db: Database, job: str, rows: Iterable[ArtifactRow]) -> list[ArtifactRow]:
    _put_artifacts(db, job, rows)
    return artifacts(db, job)


def _put_artifacts(db: Database, job: str, rows: Iterable[ArtifactRow]) -> None:
    found = list(rows)
    for row in found:
        if row.job != job:
            raise StoreError(f"the artifact {row.path} belongs to job {row.job}", where=job)
    db.change_all("upsert_artifact", map(codec.columns, found))


def artifacts(
    db: Database,
    job: str | None,
    acquisition: str | None = None,
    path: str | None = None,
    sha256: str | None = None,
) -> list[ArtifactRow]:
    if job is not None and acquisition is None:
        rows = db.rows("select_job_artifacts", job=job, path=path, sha256=sha256)
    else:
        rows = db.rows(
            "select_artifacts", job=job, acquisition=acquisition, path=path, sha256=sha256
        )
    return [codec.artifact_of(row) for row in rows]


def results(db: Database, job: str) -> tuple[Job | None, list[ArtifactRow]]:
    return load_job(db, job), artifacts(db, job)
