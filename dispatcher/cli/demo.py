"""`cosma demo`: the whole farm on this machine, on a survey whose truth is known."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from dispatcher import demo as steps
from dispatcher.amounts import human_bytes, human_seconds
from dispatcher.cli.render import table
from dispatcher.cli.stored import with_store
from dispatcher.core.model import PROGRESS, Job, JobState
from dispatcher.embedded import EmbeddedHosts
from dispatcher.errors import CosmaError, ExitCode
from dispatcher.report import FileRow, amount
from dispatcher.results import RELEASE, Results, load_results
from dispatcher.store.base import Store

_LOOK_S = 1.0  # between two looks at the database while the dispatcher works
_STOP_S = 30.0


def demo(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout at the end.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Keep everything here. (default: ./cosma-demo, without the footage)"),
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
    results = with_store(directory.database, _results)
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
        bars: dict[str, TaskID] = {}

        def tell(segment: str, share: float) -> None:
            if segment not in bars:
                bars[segment] = progress.add_task(segment, total=1.0)
                if not screen.is_terminal:
                    screen.print(f"filming {segment}", highlight=False)
            progress.update(bars[segment], completed=share)

        steps.film(directory, tell)


def _dispatch(directory: steps.DemoDirectory, inventory: Path, screen: Console) -> None:
    """Shows the jobs until the dispatcher ends; stops it in order when interrupted."""
    dispatcher = steps.start_dispatcher(directory, inventory)
    try:
        with Live(console=screen, transient=True, auto_refresh=False) as live:
            seen: dict[str, str] = {}
            while dispatcher.poll() is None:
                jobs = with_store(directory.database, _jobs)
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


async def _jobs(store: Store) -> list[Job]:
    return await store.load_jobs(acquisition=steps.ACQUISITION)


async def _results(store: Store) -> Results:
    return await load_results(store, steps.ACQUISITION)


def _jobs_table(jobs: list[Job]) -> Table:
    rows = [
        {
            "job": job.id,
            "state": job.state.value,
            "stage": job.stage.value,
            "percent": f"{PROGRESS[job.stage]:.0f}",
            "host": job.host,
            "message": job.message or None,
        }
        for job in jobs
    ]
    return table(("job", "state", "stage", "percent", "host", "message"), rows)


def _print(summary: dict[str, Any], files: Sequence[FileRow], results: Results) -> None:
    page = Console()
    segments = [
        {
            "segment": f"{row['auv']}/{row['name']}",
            "state": row["state"],
            "frames": f"{_shown(row['registered'], 'd')}/{_shown(row['frames'], 'd')}",
            "reproj px": _shown(row["reprojection_px"], ".2f"),
            "PSNR dB": _shown(row["psnr"], ".1f"),
            "SSIM": _shown(row["ssim"], ".3f"),
            "gaussians": _shown(row["gaussians"], ",d"),
            "time": f"{row['seconds']:.0f} s",
        }
        for row in summary["segments"]
    ]
    stitches = [
        {
            "scene": row["auv"] or "all AUVs",
            "state": row["state"],
            "error against truth": f"{_shown(row['error_m'], '.4f')} m",
            "of its extent": _shown(row["error_fraction"], ".2%"),
        }
        for row in summary["stitches"]
    ]
    titles = ("Segments (frames: registered/all; PSNR, SSIM: held-out views)", "Stitches")
    for title, rows in zip(titles, (segments, stitches), strict=True):
        if rows:
            page.print(table(tuple(rows[0]), rows, title))
    lines = [
        f"{job.id} is {job.state}: {job.message}. {job.advice} ({RELEASE.format(job=job.id)})"
        for job in results.jobs
        if job.state is not JobState.DONE
    ]
    lines.append(
        f"Source video left on the hosts: {amount(summary['source_bytes_left'], human_bytes)}; "
        f"given back by fstrim: {amount(summary['trimmed_bytes'], human_bytes)}; "
        f"total time {amount(summary['seconds'], human_seconds)}"
    )
    lines += [f"{file.label:>10}  {file.path}" for file in files]
    lines.append(f"{'report':>10}  {summary['report']}")
    for line in lines:
        page.print(line, highlight=False, markup=False, soft_wrap=True)


def _shown(value: float | None, pattern: str) -> str:
    return "-" if value is None else format(value, pattern)
