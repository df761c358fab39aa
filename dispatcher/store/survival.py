"""Leases, silent hosts and what a reconcile found: functions that run inside one transaction."""

from __future__ import annotations

from collections.abc import Iterable

from dispatcher.core.model import Reservation
from dispatcher.store import codec
from dispatcher.store.connection import Database
from dispatcher.store.rows import FindingRow, Lease, Silence


def leases(db: Database) -> list[Lease]:
    return [Lease(**dict(row)) for row in db.rows("select_leases")]


def renewed(
    db: Database,
    renewals: Iterable[tuple[str, int]],
    at: float,
    monotonic: float | None,
    clock_boot: str | None,
) -> None:
    for job, number in renewals:
        db.change(
            "renew_lease",
            job=job,
            attempt=number,
            at=at,
            monotonic=monotonic,
            clock_boot=clock_boot,
        )


def lease(db: Database, job: str, attempt: int) -> Lease | None:
    row = db.row("select_lease", job=job, attempt=attempt)
    return None if row is None else Lease(**dict(row))


def delete_stray_leases(db: Database) -> int:
    return db.change("delete_stray_leases")


def rebuild_reservation(db: Database, reservation: Reservation) -> None:
    db.change("delete_reservation", job=reservation.job)
    db.change("insert_reservation", **codec.columns(reservation))


def delete_reservation(db: Database, job: str) -> None:
    db.change("delete_reservation", job=job)


def set_silence(db: Database, host: str, since: float, message: str) -> None:
    db.change("upsert_silence", host=host, since=since, message=message)


def end_silence(db: Database, host: str) -> bool:
    return db.change("delete_silence", host=host) > 0


def silences(db: Database) -> list[Silence]:
    return [Silence(**dict(row)) for row in db.rows("select_silences")]


def set_findings(db: Database, host: str, rows: Iterable[FindingRow]) -> None:
    db.change("delete_findings", host=host)
    for row in rows:
        db.change("insert_finding", **codec.columns(row))


def findings(db: Database) -> list[FindingRow]:
    return [FindingRow(**dict(row)) for row in db.rows("select_findings")]
