"""`cosma gc`: what of artifact store and logs nobody refers to any more; with --apply it goes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dispatcher.amounts import human_bytes
from dispatcher.artifact_store import ArtifactStore
from dispatcher.cli import options
from dispatcher.cli.render import print_json, print_rows
from dispatcher.cli.stored import with_store
from dispatcher.clock import SystemClock
from dispatcher.core.retention import Garbage
from dispatcher.errors import CosmaError, ExitCode
from dispatcher.object_store import ObjectStore
from dispatcher.retention import DAY_S, Retention
from dispatcher.settings import DispatcherSettings
from dispatcher.store.base import Store

COLUMNS = ("sort", "bytes", "where", "why", "left")


def gc(
    apply: Annotated[
        bool, typer.Option("--apply", help="Remove it; without, it is only listed.")
    ] = False,
    days: Annotated[
        float | None,
        typer.Option(
            "--days", min=0, help="How long nobody must have needed it "
            "(default: 30, or CLEANUP_RETENTION_DAYS).",
        ),
    ] = None,
    db: options.Database = None,
    artifacts: options.Artifacts = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """List what no job, stitch or run refers to: results that were superseded, remainders, and
    logs in the database of jobs that ended long ago (results keep theirs). Exit code 3: some of it
    could not be removed."""
    settings = DispatcherSettings.load(database=db, artifacts=artifacts, retention_days=days)

    async def work(store: Store) -> tuple[list[Garbage], dict[str, str]]:
        retention = Retention(
            store=store,
            artifacts=ArtifactStore(settings.artifacts),
            remote=ObjectStore(settings.artifacts_url) if settings.artifacts_url else None,
            clock=SystemClock(),
            keep_s=settings.retention_days * DAY_S,
        )
        try:
            found = await retention.find()
        except OSError as error:
            raise CosmaError(
                "cannot look through the artifact store", where=str(settings.artifacts),
                why=str(error),
            ) from None  # fmt: skip
        return found, await retention.remove(found) if apply else {}

    found, left = with_store(db, work)
    rows = [
        {
            "sort": item.stored.sort.value,
            "bytes": item.stored.bytes,
            "where": item.stored.where,
            "sha256": item.stored.sha256 or None,
            "why": item.why,
            "left": left.get(item.stored.where),
        }
        for item in found
    ]
    gone = [item.stored.bytes for item in found if item.stored.where not in left]
    if json:
        print_json({"applied": apply, "days": settings.retention_days, "bytes": sum(gone),
                    "files": rows})  # fmt: skip
    elif rows:
        print_rows(COLUMNS, rows)
    does = "removed" if apply else "would be removed: cosma gc --apply"
    amount = f"{len(gone)} files and logs, {human_bytes(sum(gone))}"
    print(f"{amount}: {does if gone else 'nothing to do'}", file=sys.stderr)
    if left:
        raise typer.Exit(ExitCode.PARTIAL)
