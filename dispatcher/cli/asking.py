"""What an operator asks of a job, and what the dispatcher answers."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from dispatcher.cli.stored import known_job, with_store
from dispatcher.errors import UsageError
from dispatcher.heartbeat import dispatcher_runs
from dispatcher.requests import refused
from dispatcher.settings import DispatcherSettings
from dispatcher.store.base import Store
from dispatcher.store.lock import holder_is_gone
from dispatcher.store.rows import Request
from dispatcher.stored_farm import as_asked

ANSWER_S = 5.0  # a dispatcher looks for requests every second
_POLL_S = 0.1
_PENDING = "pending"


def ask(db: Path | None, job: str, kind: str, args: dict[str, Any]) -> None:
    """Print what comes of it. Raises UsageError when the dispatcher refuses it, or would."""
    database = DispatcherSettings.load(database=db).database
    runs = dispatcher_runs(database, time.time()) and not holder_is_gone(database)

    async def work(store: Store) -> Request:
        await known_job(store, job)
        if not runs:
            _allow(await _would_refuse(store, job, kind, args), job, kind)
        number = await store.add_request(kind, job=job, args=args)
        return await _answer(store, number, ANSWER_S if runs else 0.0)

    request = with_store(db, work)
    if request.state == "refused":
        _allow(request.answer, job, kind)
    if request.state != _PENDING:
        print(f"{kind} {job}: accepted")
    elif runs:
        print(f"{kind} {job}: noted; the dispatcher has not answered within {ANSWER_S:g} s")
    else:
        print(f"{kind} {job}: noted; no dispatcher runs, the next one acts on it (cosma dispatch)")


def _allow(refusal: str, job: str, kind: str) -> None:
    if refusal:
        raise UsageError(f"{kind} is refused", where=job, why=refusal)


async def _would_refuse(store: Store, job: str, kind: str, args: dict[str, Any]) -> str:
    """As the next dispatcher would, after what was asked before."""
    now = time.time()
    jobs = {
        one.id: one
        for one in as_asked(await store.load_jobs(), await store.pending_requests(), now)
    }
    asked = Request(id=0, kind=kind, job=job, args=args, created_at=now, state=_PENDING)
    silent = {silence.host for silence in await store.silences()}
    return refused(asked, jobs.get(job), silent=silent, at=now)


async def _answer(store: Store, number: int, patience_s: float) -> Request:
    end = time.monotonic() + patience_s
    while True:
        request = await store.request(number)
        if request is None:
            raise AssertionError(f"request {number} was just written")
        if request.state != _PENDING or time.monotonic() >= end:
            return request
        await asyncio.sleep(_POLL_S)
