"""`cosma jobs`: one row a job."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from dispatcher.cli import options
from dispatcher.cli.render import print_json, print_rows
from dispatcher.cli.stored import with_store
from dispatcher.progress import JobRow, job_row
from dispatcher.store.base import Store

COLUMNS = ("job", "state", "stage", "percent", "host", "reason", "message")


async def load_rows(store: Store, acquisition: str | None) -> list[JobRow]:
    progress, waiting = await store.progress(), await store.waiting()
    return [
        job_row(job, progress.get(job.id), waiting.get(job.id))
        for job in await store.load_jobs(acquisition=acquisition)
    ]


def jobs(
    acquisition: Annotated[
        str | None, typer.Option("--acquisition", "-a", help="Only of this survey.")
    ] = None,
    state: Annotated[str | None, typer.Option(help="Only in this state.")] = None,
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """List jobs with state, stage, progress and, where one waits or was held, the reason."""

    async def work(store: Store) -> list[JobRow]:
        return await load_rows(store, acquisition)

    rows = [dataclasses.asdict(row) for row in with_store(db, work) if state in (None, row.state)]
    if json:
        print_json(rows)
    else:
        print_rows(COLUMNS, rows)
