"""Events, arriving logs and progress: functions that run inside one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dispatcher.store import codec
from dispatcher.store.base import OffsetGap, StoreError
from dispatcher.store.connection import Database
from dispatcher.store.rows import EventRow, Offsets, Progress

ALL = -1  # SQLite: LIMIT -1 is no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Part of an attempt's streams: [from, to) in bytes of each file; None: from where it ends."""

    events: Sequence[dict[str, Any]] = ()
    events_from: int | None = None
    events_to: int | None = None
    log: bytes = b""
    log_from: int | None = None
    log_to: int | None = None


def append(db: Database, job: str, attempt: int, piece: Piece, at: float) -> Offsets:
    """Each byte once: what is stored is dropped, a gap raises OffsetGap."""
    host, have = _known(db, job, attempt)
    events_end, log_end = have.events, have.log
    if piece.events_to is not None and piece.events_to > have.events:
        start = piece.events_from if piece.events_from is not None else have.events
        if start != have.events:
            raise OffsetGap(job, attempt, "events", have.events, start)
        _keep_events(db, job, attempt, host, piece.events, at)
        events_end = piece.events_to
    if piece.log:
        start = _log_start(piece, have.log)
        if start > have.log:
            raise OffsetGap(job, attempt, "log", have.log, start)
        fresh = piece.log[have.log - start :]
        if fresh:
            db.change("insert_log", job=job, attempt=attempt, position=have.log, data=fresh)
            log_end = have.log + len(fresh)
    db.change("move_offsets", job=job, attempt=attempt, events=events_end, log=log_end)
    return Offsets(events=events_end, log=log_end)


def _log_start(piece: Piece, end: int) -> int:
    if piece.log_from is not None:
        return piece.log_from
    return piece.log_to - len(piece.log) if piece.log_to is not None else end


def _keep_events(
    db: Database, job: str, attempt: int, host: str, events: Sequence[dict[str, Any]], at: float
) -> None:
    last: dict[str, Any] | None = None
    for event in events:
        payload = {k: v for k, v in event.items() if k not in ("time", "attempt", "kind")}
        when = event.get("time")
        kind = str(event.get("kind", "unknown"))
        db.insert(
            "insert_event",
            at=float(when) if isinstance(when, int | float) else at,
            kind=kind,
            job=job,
            attempt=attempt,
            host=host,
            payload=codec.to_json(payload),
            stimulus="",
            source="agent",
        )
        if kind == "progress" and isinstance(payload.get("fraction"), int | float):
            last = payload
    if last is not None and _is_current(db, job, attempt):
        numbers = {k: v for k, v in last.items() if k not in ("fraction", "message")}
        set_progress(db, job, float(last["fraction"]), str(last.get("message", "")), numbers, at)


def _is_current(db: Database, job: str, attempt: int) -> bool:
    row = db.row("select_live_attempt", job=job)
    return row is not None and bool(row["attempt"] == attempt)


def offsets(db: Database, job: str, attempt: int) -> Offsets:
    return _known(db, job, attempt)[1]


def _known(db: Database, job: str, attempt: int) -> tuple[str, Offsets]:
    """The attempt's host, and what is stored of its streams."""
    row = db.row("select_offsets", job=job, attempt=attempt)
    if row is None:
        raise StoreError(f"there is no attempt {attempt}", where=job)
    return row["host"], Offsets(events=row["events_bytes"], log=row["log_bytes"])


def set_progress(
    db: Database, job: str, fraction: float, message: str, numbers: Mapping[str, Any], at: float
) -> None:
    db.change(
        "upsert_progress",
        job=job,
        fraction=min(1.0, max(0.0, fraction)),
        message=message,
        numbers=codec.to_json(dict(numbers)),
        updated_at=at,
    )


def progress(db: Database) -> dict[str, Progress]:
    return dict(codec.progress_of(row) for row in db.rows("select_progress"))


def record_event(
    db: Database,
    kind: str,
    *,
    job: str | None,
    attempt: int | None,
    host: str | None,
    payload: dict[str, Any],
    stimulus: str,
    at: float,
) -> str:
    return str(
        db.insert(
            "insert_event",
            at=at,
            kind=kind,
            job=job,
            attempt=attempt,
            host=host,
            payload=codec.to_json(payload),
            stimulus=stimulus,
            source="dispatcher",
        )
    )


def events(
    db: Database,
    *,
    job: str | None,
    kind: str | None,
    host: str | None,
    after: int,
    limit: int | None,
) -> list[EventRow]:
    values = {"kind": kind, "host": host, "after": after, "limit": ALL if limit is None else limit}
    if job is not None:
        rows = db.rows("select_job_events", job=job, **values)
    else:
        rows = db.rows("select_events", **values)
    return [codec.event_of(row) for row in rows]
