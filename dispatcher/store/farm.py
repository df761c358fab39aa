"""Hosts, stitches, requests and epochs: functions that run inside one transaction."""

from __future__ import annotations

from typing import Any

from dispatcher.core.breaker import Breaker
from dispatcher.store import codec
from dispatcher.store.base import StoreError
from dispatcher.store.connection import Database
from dispatcher.store.rows import Gpu, Host, Request


def new_epoch(db: Database, host: str, pid: int, at: float) -> int:
    """At least the start's Unix microsecond, so that of two dispatchers with a database each the
    younger outranks the older; one more than the last where this machine's clock went back."""
    return db.insert("insert_dispatcher", host=host, pid=pid, started_at=at)


def last_epoch(db: Database) -> int:
    row = db.row("select_last_epoch")
    return 0 if row is None else int(row["epoch"])


# --- hosts ---


def upsert_host(db: Database, host: Host) -> None:
    db.change(
        "upsert_host",
        name=host.name,
        state=host.state,
        message=host.message,
        facts=codec.to_json(host.facts) if host.facts is not None else None,
        cordoned=host.cordoned,
        probed_at=host.probed_at,
        updated_at=host.updated_at,
    )
    if host.facts is None:
        return
    # What a GPU that does not answer last said stays, with its age.
    db.change("delete_gpus", host=host.name, silent=bool(host.facts.get("gpu_error")))
    for gpu in host.facts.get("gpus", ()):
        db.change(
            "insert_gpu",
            host=host.name,
            uuid=gpu["uuid"],
            name=gpu["name"],
            kind=gpu["kind"],
            total_mib=gpu["total_mib"],
            free_mib=gpu["free_mib"],
            processes=codec.to_json(gpu.get("processes", ())),
            updated_at=host.updated_at,
        )


def set_cordoned(db: Database, name: str, cordoned: bool, draining: bool, at: float) -> None:
    db.change("cordon_host", name=name, cordoned=cordoned, draining=draining, updated_at=at)


def cordons(db: Database) -> dict[str, bool]:
    return {row["name"]: bool(row["draining"]) for row in db.rows("select_cordons")}


def save_breaker(db: Database, breaker: Breaker) -> None:
    db.change("save_breaker", **codec.breaker_values(breaker))


def breakers(db: Database) -> dict[str, Breaker]:
    found = (codec.breaker_of(row) for row in db.rows("select_breakers"))
    return {breaker.key: breaker for breaker in found}


def reset_breakers(db: Database, host: str) -> int:
    return db.change("delete_breakers", host=host)


def hosts(db: Database) -> list[Host]:
    return [codec.host_of(row) for row in db.rows("select_hosts")]


def gpus(db: Database, host: str | None) -> list[Gpu]:
    return [codec.gpu_of(row) for row in db.rows("select_gpus", host=host)]


# --- requests ---


def add_request(db: Database, kind: str, job: str | None, args: dict[str, Any], at: float) -> int:
    return db.insert("insert_request", kind=kind, job=job, args=codec.to_json(args), created_at=at)


def requests(db: Database, *, request: int | None, state: str | None) -> list[Request]:
    return [codec.request_of(row) for row in db.rows("select_requests", id=request, state=state)]


def requests_of(db: Database, kinds: tuple[str, ...]) -> list[Request]:
    rows = db.rows("select_requests_of", kinds=codec.to_json(kinds))
    return [codec.request_of(row) for row in rows]


def finish_request(db: Database, request: int, answer: str, ok: bool, at: float) -> None:
    state = "done" if ok else "refused"
    if db.change("finish_request", id=request, state=state, answer=answer, finished_at=at) == 0:
        raise StoreError("there is no such request", where=f"request {request}")
