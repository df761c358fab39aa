"""`cosma worker cordon | drain | resume`: whether a host gets work, as the database says.

A dispatcher that runs reads it within a second or two, and every later one does at its start.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from dispatcher.cli import options
from dispatcher.cli.stored import with_store
from dispatcher.core.model import SETTLED, Job, Reason, Step, Waiting
from dispatcher.errors import ExitCode, InventoryError, UsageError
from dispatcher.heartbeat import dispatcher_runs
from dispatcher.inventory import find_inventory, inventory_path
from dispatcher.inventory_model import InventoryHost
from dispatcher.settings import DispatcherSettings
from dispatcher.store.base import Store

POLL_S = 0.5
Name = Annotated[str, typer.Argument(help="Name of the host in the inventory.")]


def cordon(host: Name, db: options.Database = None, inventory: options.Inventory = None) -> None:
    """Send no new job to a host; the jobs it has go on there."""
    _known(inventory, host)
    _mark(db, host, "cordoned", cordoned=True)
    _say(f"{host}: cordoned; `cosma worker resume {host}` lifts it")


def drain(
    host: Name,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the host is empty.")] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0, help="With --wait: seconds at most.")
    ] = None,
    db: options.Database = None,
    inventory: options.Inventory = None,
) -> None:
    """Empty a host: running stages finish there, what waits there goes to other hosts.

    With --wait, exits with 3 when jobs stay there because no other host could take them, or when
    the time is up.
    """
    _known(inventory, host)
    _mark(db, host, "drained", cordoned=True, draining=True)
    _say(f"{host}: drains; `cosma worker resume {host}` lifts it")
    if wait:
        if not dispatcher_runs(DispatcherSettings.load(database=db).database, time.time()):
            _say("no dispatcher runs now: what waits there moves once `cosma dispatch` does")
        left = with_store(db, lambda store: _wait_until_empty(store, host, timeout))
        for line in left:
            _say(line)
        if left:
            raise typer.Exit(ExitCode.PARTIAL)
        _say(f"{host}: empty")


def resume(host: Name, db: options.Database = None, inventory: options.Inventory = None) -> None:
    """Send work to a cordoned, drained or quarantined host again."""
    entry = _known(inventory, host)

    async def work(store: Store) -> int:
        return await store.reset_breakers(host)

    lifted = with_store(db, work, create=True)
    _mark(db, host, "resumed", cordoned=False)
    if entry.cordoned:
        raise UsageError(
            "it stays cordoned", where=host, why="its entry in the inventory says `cordoned: true`",
            fix=f"Remove that line from {inventory_path(inventory)}",
        )  # fmt: skip
    _say(f"{host}: takes work again" + (f"; {lifted} breaker(s) reset" if lifted else ""))


def _mark(db: Path | None, host: str, word: str, *, cordoned: bool, draining: bool = False) -> None:
    async def work(store: Store) -> None:
        await store.set_cordoned(host, cordoned, draining=draining)
        await store.record_event(f"host_{word}", host=host, payload={"by": "operator"})

    with_store(db, work, create=True)


async def _wait_until_empty(store: Store, host: str, timeout_s: float | None) -> list[str]:
    """One line for each job that is still there; none when the host is empty."""
    end = None if timeout_s is None else time.monotonic() + timeout_s
    said = ""
    while True:
        jobs = [
            job
            for job in await store.load_jobs(active_only=True)
            if job.host == host and job.state not in SETTLED
        ]
        waiting = await store.waiting()
        stuck = [job for job in jobs if _stays(job, waiting.get(job.id))]
        if len(stuck) == len(jobs):
            return [f"{job.id} stays: {waiting[job.id].message}" for job in stuck]
        line = f"{host}: {len(jobs)} job(s) there: " + ", ".join(
            f"{job.id} ({job.stage}, {job.step})" for job in jobs[:5]
        )
        if line != said:
            _say(line)
            said = line
        if end is not None and time.monotonic() >= end:
            return [f"{job.id} is still there: {job.stage}, {job.step}" for job in jobs]
        await asyncio.sleep(POLL_S)


def _stays(job: Job, waiting: Waiting | None) -> bool:
    """The dispatcher has looked, and nobody else could take the job."""
    return job.step is Step.PLACE and waiting is not None and waiting.reason is Reason.HOST_DRAINING


def _known(inventory: Path | None, name: str) -> InventoryHost:
    """Raises InventoryError for a host that the inventory does not name."""
    found = find_inventory(inventory)
    host = found.host(name)
    if host is None:
        known = ", ".join(h.name for h in found.hosts) or "none"
        raise InventoryError(
            f"no host {name}", why="the inventory does not name it", fix=f"Known hosts: {known}"
        )
    return host


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
