"""`cosma demo`: the whole farm on this machine, on a survey whose truth is known."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from dispatcher import demo as steps
from dispatcher.core.model import PROGRESS, Job
from dispatcher.embedded import EmbeddedHosts
from dispatcher.errors import CosmaError, ExitCode
from dispatcher.report import human_bytes, human_seconds
from dispatcher.results import RELEASE, Results, load_results
from dispatcher.store.sqlite import SqliteStore

_LOOK_S = 1.0  # between two looks at the database while the dispatcher works
_STOP_S = 30.0


def demo(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout at the end.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Keep everything here. [default: ./cosma-demo, without the footage]"),
    ] = None,
    hosts: Annotated[int, typer.Option(min=1, max=16, help="SSH hosts to start.")] = 3,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep footage and hosts without --out, too.")
    ] = False,
) -> None:
    """Film a synthetic seabed with two AUVs, reconstruct and stitch it over SSH, compare to truth.

    Takes minutes on two cores without a GPU. Exits 0 only when everything is done.
    """
    began = time.monotonic()
    signal.signal(signal.SIGTERM, _interrupt)
    screen = Console(stderr=True)
    directory = steps.DemoDirectory.create(out or Path("cosma-demo"))
    _film(directory, screen)
    with EmbeddedHosts(hosts, directory.hosts) as farm:
        try:
            names = ", ".join(f"{host.name} on port {host.port}" for host in farm.hosts)
            screen.print(f"SSH hosts: {names}", highlight=False)
            steps.write_config(directory, hosts)
            steps.ingest(directory)
            _dispatch(directory, farm.inventory, screen)
        finally:
            farm.power_off()
    results = asyncio.run(_results(directory))
    errors = steps.evaluate(directory, results)
    summary = steps.summarise(directory, results, errors, farm.hosts, began)
    steps.write_report(directory, summary, results, farm.hosts)
    if results.complete and out is None and not keep:
        shutil.rmtree(directory.hosts)
        shutil.rmtree(directory.footage)
    if as_json:
        print(json.dumps(summary))
    else:
        _print(summary, steps.output_files(results), results)
    if not results.complete:
        raise typer.Exit(ExitCode.FAILED)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _film(directory: steps.DemoDirectory, screen: Console) -> None:
    columns = (
        TextColumn("filming {task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
    )
    with Progress(*columns, console=screen) as progress:
        bars: dict[str, Any] = {}

        def tell(segment: str, share: float) -> None:
            if segment not in bars:
                bars[segment] = progress.add_task(segment, total=1.0)
            progress.update(bars[segment], completed=share)

        steps.film(directory, tell)


def _dispatch(directory: steps.DemoDirectory, inventory: Path, screen: Console) -> None:
    """Shows the jobs until the dispatcher ends; stops it in order when interrupted."""
    dispatcher = steps.start_dispatcher(directory, inventory)
    try:
        with Live(console=screen, transient=True, auto_refresh=False) as live:
            seen: dict[str, str] = {}
            while dispatcher.poll() is None:
                jobs = asyncio.run(_jobs(directory))
                live.update(_jobs_table(jobs), refresh=screen.is_terminal)
                for job in jobs:
                    now = f"{job.state} {job.stage} on {job.host or '-'}"
                    if seen.get(job.id) != now and not screen.is_terminal:
                        screen.print(f"{job.id}: {now}", highlight=False, soft_wrap=True)
                    seen[job.id] = now
                try:
                    dispatcher.wait(_LOOK_S)
                except subprocess.TimeoutExpired:
                    continue
    finally:
        if dispatcher.poll() is None:
            dispatcher.terminate()
            try:
                dispatcher.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                dispatcher.kill()
                dispatcher.wait()
    if dispatcher.returncode not in (ExitCode.OK, ExitCode.FAILED, ExitCode.PARTIAL):
        lines = directory.log.read_text(errors="replace").strip().splitlines() or ["no output"]
        raise CosmaError(
            f"the dispatcher ended with exit code {dispatcher.returncode}",
            why=lines[-1],
            fix=f"The whole output is in {directory.log}",
        )


async def _jobs(directory: steps.DemoDirectory) -> list[Job]:
    store = await SqliteStore.open(directory.database)
    try:
        return await store.load_jobs(acquisition=steps.ACQUISITION)
    finally:
        await store.close()


async def _results(directory: steps.DemoDirectory) -> Results:
    store = await SqliteStore.open(directory.database)
    try:
        return await load_results(store, steps.ACQUISITION)
    finally:
        await store.close()


def _jobs_table(jobs: list[Job]) -> Table:
    table = Table("job", "state", "stage", "%", "host", "", box=None, padding=(0, 2))
    for job in jobs:
        share = f"{PROGRESS[job.stage]:.0f}"
        table.add_row(job.id, job.state, job.stage, share, job.host or "", job.message)
    return table


def _print(summary: dict[str, Any], files: list[Any], results: Results) -> None:
    page = Console()
    segments = Table(title="Segments", title_justify="left")
    for heading in ("segment", "AUV", "state"):
        segments.add_column(heading)
    for heading in ("frames registered", "reprojection px", "PSNR dB", "SSIM", "gaussians", "time"):
        segments.add_column(heading, justify="right")
    for row in summary["segments"]:
        segments.add_row(
            row["name"],
            row["auv"],
            row["state"],
            f"{_shown(row['registered'], 'd')} / {_shown(row['frames'], 'd')}",
            _shown(row["reprojection_px"], ".2f"),
            _shown(row["psnr"], ".1f"),
            _shown(row["ssim"], ".3f"),
            _shown(row["gaussians"], ",d"),
            human_seconds(row["seconds"]),
        )
    stitches = Table(title="Stitches", title_justify="left")
    stitches.add_column("scene")
    stitches.add_column("state")
    stitches.add_column("error against truth", justify="right")
    stitches.add_column("of the extent", justify="right")
    for row in summary["stitches"]:
        error = row["error_m"]
        stitches.add_row(
            row["auv"] or "all AUVs",
            row["state"],
            "-" if error is None else f"{100 * error:.2f} cm",
            _shown(row["error_fraction"], ".2%"),
        )
    page.print(segments)
    page.print(stitches)
    for job in results.jobs:
        if job.reason is not None:
            command = RELEASE.format(job=job.id)
            page.print(f"{job.id} is {job.state}: {job.message} ({command})", highlight=False)
    left, trimmed = summary["source_bytes_left"], summary["trimmed_bytes"]
    page.print(
        f"Source video left on the hosts: {human_bytes(left)}; given back by fstrim: "
        f"{human_bytes(trimmed)}; total time {human_seconds(summary['seconds'])}",
        highlight=False,
    )
    for file in files:
        page.print(f"{file.label:>10}  {file.path}", highlight=False, soft_wrap=True)
    page.print(f"{'report':>10}  {summary['report']}", highlight=False, soft_wrap=True)


def _shown(value: float | None, pattern: str) -> str:
    return "-" if value is None else format(value, pattern)
