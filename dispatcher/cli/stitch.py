"""`cosma stitch …`: the stitches of a survey and their evidence."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dispatcher.cli import options
from dispatcher.cli.job import retry as retry_job
from dispatcher.cli.render import print_json, print_rows
from dispatcher.cli.stored import known_acquisition, with_store
from dispatcher.errors import UsageError
from dispatcher.store.base import Store
from dispatcher.store.rows import Stitch

app = typer.Typer(help="Per-AUV and cross-AUV stitches.", no_args_is_help=True)

_EDGE = ("source", "target", "method", "inliers", "share", "accepted", "reason")

StitchId = Annotated[str, typer.Argument(metavar="STITCH")]


@app.command()
def ls(
    acquisition: Annotated[
        str | None, typer.Option("--acquisition", "-a", help="Only of this survey.")
    ] = None,
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """All stitches, with their members and state."""

    async def work(store: Store) -> list[dict[str, Any]]:
        survey = None if acquisition is None else await known_acquisition(store, acquisition)
        return [
            {
                "stitch": s.id,
                "level": s.level.value,
                "auv": s.auv or "",
                "state": s.state.value,
                "version": s.version,
                "members": ", ".join(s.members),
                "pass_through": s.passthrough,
            }
            for s in await store.stitches(acquisition=survey)
        ]

    rows = with_store(db, work)
    if json:
        print_json(rows)
    else:
        print_rows(("stitch", "level", "auv", "state", "version", "members"), rows)


@app.command()
def show(stitch: StitchId, db: options.Database = None, json: options.Json = False) -> None:
    """Its report: transforms, edges with their inliers, what was left out."""

    async def work(store: Store) -> dict[str, Any]:
        found = await _known(store, stitch)
        job = await store.job(found.job) if found.job else None
        return {
            "stitch": found.id,
            "level": found.level.value,
            "state": found.state.value,
            "members": list(found.members),
            "pass_through": found.passthrough,
            "reason": str(job.reason or "") if job else "",
            "message": job.message if job else "",
            "advice": job.advice if job else "",
            "report": found.report,
            "artifacts": {
                row.kind: row.local_path
                for row in await store.artifacts(job=found.job or found.members[0])
                if row.local_path
            },
        }

    view = with_store(db, work)
    if json:
        print_json(view)
        return
    for key in ("stitch", "level", "state", "reason", "message", "advice"):
        if view[key]:
            print(f"{key}: {view[key]}")
    print_rows(
        _EDGE,
        [{key: edge.get(key) for key in _EDGE} for edge in view["report"].get("edges", [])],
    )
    for kind, path in view["artifacts"].items():
        print(f"{kind}: {path}")


@app.command()
def retry(stitch: StitchId, db: options.Database = None) -> None:
    """Make a held or failed stitch again."""
    found = with_store(db, lambda store: _known(store, stitch))
    if found.job is None:
        raise UsageError("nothing to make", where=stitch, why="it is its one member as it is")
    retry_job(found.job, db=db)


async def _known(store: Store, stitch: str) -> Stitch:
    found = await store.stitch(stitch)
    if found is None:
        raise UsageError("no such stitch", where=stitch, fix="`cosma stitch ls` lists them")
    return found
