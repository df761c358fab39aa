"""`cosma jobs`: one row a job."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

import typer

from dispatcher.cli import options
from dispatcher.cli.eta import eta_short, load_outlook
from dispatcher.cli.render import print_json, print_rows
from dispatcher.cli.stored import known_acquisition, with_store
from dispatcher.core.model import JobState
from dispatcher.core.outlook import Outlook
from dispatcher.progress import JobRow, job_row
from dispatcher.settings import DispatcherSettings
from dispatcher.store.base import Store

COLUMNS = ("job", "state", "stage", "percent", "host", "eta", "reason", "message")


async def load_rows(store: Store, acquisition: str | None, outlook: Outlook | None) -> list[JobRow]:
    progress, waiting = await store.progress(), await store.waiting()
    etas = outlook.jobs if outlook is not None else {}
    return [
        job_row(job, progress.get(job.id), waiting.get(job.id), etas.get(job.id))
        for job in await store.load_jobs(acquisition=acquisition)
    ]


def jobs(
    acquisition: Annotated[
        str | None, typer.Option("--acquisition", "-a", help="Only of this survey.")
    ] = None,
    state: Annotated[JobState | None, typer.Option(help="Only in this state.")] = None,
    inventory: options.Inventory = None,
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """List jobs with state, stage, progress, when they will be done and, where one waits or was
    held, the reason."""
    database = DispatcherSettings.load(database=db).database

    async def work(store: Store) -> list[JobRow]:
        survey = None if acquisition is None else await known_acquisition(store, acquisition)
        return await load_rows(store, survey, await load_outlook(store, database, inventory))

    rows = [row for row in with_store(db, work) if state in (None, row.state)]
    if json:
        print_json([asdict(row) for row in rows])
    else:
        now = time.time()
        print_rows(COLUMNS, [{**asdict(row), "eta": eta_short(row.eta, now)} for row in rows])
