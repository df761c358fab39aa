"""`cosma ingest`: from a directory of video to queued jobs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from dispatcher.cli import options
from dispatcher.cli.render import print_json, print_rows
from dispatcher.cli.stored import with_store
from dispatcher.core.model import JobState
from dispatcher.errors import ExitCode
from dispatcher.ingest import Ingested
from dispatcher.ingest import ingest as ingest_source
from dispatcher.settings import PipelineConfig
from dispatcher.store.base import Store


def ingest(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="<auv>/<gopro_serial>/<segment>/*.MP4 below it, or GoPro files in it; "
            "host:/absolute/path is pulled by the hosts themselves. Logs of the vehicle (nav.csv, "
            "see docs/navigation.md) go along.",
        ),
    ],
    acquisition: Annotated[str, typer.Option("--acquisition", "-a", help="Name of the survey.")],
    auv: Annotated[
        str, typer.Option(help="Vehicle of files that lie in no vehicle's directory.")
    ] = "auv",
    serial: Annotated[str, typer.Option(help="Camera of such files.")] = "unknown",
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Pipeline settings (YAML).")
    ] = None,
    priority: Annotated[int, typer.Option(help="Higher goes first.")] = 0,
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """Find videos, look at each, and queue one job a segment. Safe to repeat."""
    pipeline = PipelineConfig.load(config)

    async def work(store: Store) -> list[Ingested]:
        return await ingest_source(
            store, source, acquisition=acquisition, config=pipeline, auv=auv, serial=serial,
            priority=priority,
        )  # fmt: skip

    found = with_store(db, work, create=True)
    rows = [dataclasses.asdict(item) for item in found]
    if json:
        print_json({"acquisition": acquisition, "segments": rows})
    else:
        print_rows(
            ("job", "auv", "segment", "clips", "logs", "bytes", "state", "reason", "message"), rows
        )
    if any(item.message for item in found if item.new or item.state is not JobState.HELD):
        raise typer.Exit(ExitCode.PARTIAL)
