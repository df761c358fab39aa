"""`cosma artifact`: from a result back to where it came from."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dispatcher.artifact_lookup import makers
from dispatcher.cli import options
from dispatcher.cli.render import print_json, print_rows
from dispatcher.cli.stored import with_store
from dispatcher.errors import CosmaError
from dispatcher.store.base import Store

app = typer.Typer(help="Files that jobs have made.", no_args_is_help=True)

COLUMNS = ("job", "kind", "stage", "attempt", "host", "bytes", "sha256", "where", "stitches")


@app.callback()
def _group() -> None:
    """Keeps `who` a word of its own."""


@app.command()
def who(
    what: Annotated[
        str,
        typer.Argument(
            metavar="PATH|SHA256", help="A file here, on a host or in the object store; or a hash."
        ),
    ],
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """Say which job made a file, on which host and in which attempt, where it lies, and which
    stitches were made of it."""

    async def work(store: Store) -> list[dict[str, Any]]:
        return [await _row(store, one) for one in await makers(store, what)]

    async def _row(store: Store, one: Any) -> dict[str, Any]:
        job = await store.job(one.job)
        stages = {a.attempt: a.stage.value for a in await store.attempts(one.job)}
        of = [s.id for s in await store.stitches() if one.job in s.members]
        return {
            "job": one.job,
            "acquisition": job.acquisition if job else None,
            "kind": one.kind,
            "stage": stages.get(one.attempt or 0),
            "attempt": one.attempt,
            "host": one.host,
            "path": one.path,
            "bytes": one.bytes,
            "sha256": one.sha256,
            "where": one.local_path or one.remote_url or f"{one.host}:{one.path}",
            "local_path": one.local_path,
            "remote_url": one.remote_url,
            "stitches": of if json else ", ".join(of) or None,
        }

    rows = with_store(db, work)
    if not rows:
        raise CosmaError(
            "no job made this", where=what,
            fix="give a path or a SHA-256 as `cosma job show JOB` prints them",
        )  # fmt: skip
    if json:
        print_json(rows)
    else:
        print_rows(COLUMNS, rows)
