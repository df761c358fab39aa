"""`cosma job …`: one job: what happened to it, its log, and what the operator can ask for."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dispatcher.artifact_store import LOG
from dispatcher.cli import options
from dispatcher.cli.asking import ask
from dispatcher.cli.render import print_json, print_rows
from dispatcher.cli.stored import known_job, with_store
from dispatcher.core.model import MOST_PRIORITY, Job, Stage, stages_of
from dispatcher.core.need import GPU_STAGES
from dispatcher.error_area import set_aside
from dispatcher.errors import UsageError
from dispatcher.learning import Learning
from dispatcher.progress import job_row
from dispatcher.requests import ABANDON, CANCEL, PRIORITY, RETRY
from dispatcher.settings import DispatcherSettings
from dispatcher.store.base import Store
from dispatcher.store.rows import Gpu

app = typer.Typer(help="Look at one job, or ask something of it.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(metavar="JOB")]


@app.command()
def show(job: JobId, db: options.Database = None, json: options.Json = False) -> None:
    """State, attempts with what they cost, what their stages warned of, and files."""

    async def work(store: Store) -> dict[str, Any]:
        found = await known_job(store, job)
        progress, waiting = await store.progress(), await store.waiting()
        row = job_row(found, progress.get(job), waiting.get(job))
        run = await store.run(job)
        metrics = {m.attempt: m for m in await store.stage_metrics(job)}
        return {
            **dataclasses.asdict(row),
            "advice": found.advice,
            "config_sha256": run.sha256 if run else None,
            "smaller_plan": found.shrink or None,
            "every_nth_frame": found.stride if found.stride > 1 else None,
            "needs_mib": found.need_mib,
            "needs_ram_mib": found.need_ram_mib,
            "needs": needs_of(found, await Learning.from_store(store), await store.gpus()),
            "attempts": [
                {
                    "attempt": a.attempt,
                    "stage": a.stage.value,
                    "host": a.host,
                    "state": a.state,
                    "resumed": a.resumed,
                    "wall_s": metrics[a.attempt].wall_s if a.attempt in metrics else None,
                    "cpu_s": metrics[a.attempt].cpu_s if a.attempt in metrics else None,
                    "peak_rss_mib": metrics[a.attempt].peak_rss_mib
                    if a.attempt in metrics
                    else None,
                    "reason": str(a.reason or ""),
                    "message": a.message,
                }
                for a in await store.attempts(job)
            ],
            "warnings": [
                {"attempt": event.attempt, "warning": event.payload.get("message", "")}
                for event in await store.events(job=job, kind="warning")
            ],
            "artifacts": [
                {"kind": r.kind, "path": r.local_path or f"{r.host}:{r.path}", "bytes": r.bytes,
                 "sha256": r.sha256}
                for r in await store.artifacts(job=job)
            ],
        }  # fmt: skip

    view = with_store(db, work)
    if json:
        print_json(view)
        return
    lists = ("attempts", "warnings", "artifacts", "needs")
    for key, value in view.items():
        if key not in lists and value not in ("", None):
            print(f"{key.replace('_', ' ')}: {value}")
    print_rows(
        ("attempt", "stage", "host", "state", "wall_s", "cpu_s", "peak_rss_mib", "message"),
        view["attempts"],
    )
    if view["warnings"]:
        print_rows(("attempt", "warning"), view["warnings"])
    print_rows(("kind", "bytes", "path"), view["artifacts"])
    print_rows(
        ("stage", "device", "vram_mib", "ram_mib", "cores", "seconds", "runs"),
        [{**row, "seconds": "{low} - {high}".format(**row["seconds"])} for row in view["needs"]],
    )


def needs_of(job: Job, learning: Learning, gpus: Sequence[Gpu]) -> list[dict[str, Any]]:
    """What each stage of the job is taken to need, on each model of device that hosts have, and
    from how many runs that is known (0: a first guess)."""
    models = {gpu.name: gpu.device for gpu in gpus}
    rows = []
    for stage in stages_of(job.kind):
        at = dataclasses.replace(job, stage=stage)
        for device in models.values() if stage in GPU_STAGES else (None,):
            need = learning.needs.of(at, device)
            span = dataclasses.asdict(need.seconds)
            rows.append(
                {
                    "stage": stage.value,
                    "device": device.name if device is not None else "",
                    "vram_mib": need.vram_mib,
                    "ram_mib": need.ram_mib,
                    "disk_bytes": need.disk_bytes,
                    "cores": need.cpu_cores,
                    "seconds": {name: round(value, 1) for name, value in span.items()},
                    "runs": need.runs,
                }
            )
    return rows


@app.command()
def logs(
    job: JobId,
    attempt: Annotated[int | None, typer.Option(help="Default: the last one.")] = None,
    events: Annotated[bool, typer.Option("--events", help="The event log instead.")] = False,
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """What the stage printed on the host, byte for byte; or every event of the job."""

    async def text(store: Store) -> bytes:
        found = await known_job(store, job)
        if attempt is not None and not 1 <= attempt <= found.attempt:
            raise UsageError(
                f"no attempt {attempt}", where=job, why=f"it has had {found.attempt}",
                fix=f"`cosma job show {job}` lists them",
            )  # fmt: skip
        number = found.attempt if attempt is None else attempt
        text = await store.logs(job, number)
        if text or not number or not (await store.attempt_offsets(job, number)).log:
            return text
        kept = [row.local_path for row in await store.artifacts(job=job) if row.path == LOG]
        raise UsageError(
            f"the log of attempt {number} is not in the database any more", where=job,
            why="it ended longer ago than CLEANUP_RETENTION_DAYS",
            fix=f"read {kept[0]}" if kept else "its events are there: --events",
        )  # fmt: skip

    async def facts(store: Store) -> list[dict[str, Any]]:
        await known_job(store, job)
        return [dataclasses.asdict(event) for event in await store.events(job=job)]

    if not events and not json:
        sys.stdout.buffer.write(with_store(db, text))
        return
    rows = with_store(db, facts)
    if json:
        print_json(rows)
        return
    for row in rows:
        clock = time.strftime("%H:%M:%S", time.localtime(row["at"]))
        row.update({"time": clock, "payload": _short(row["payload"])})
    print_rows(("id", "time", "source", "kind", "attempt", "payload", "stimulus"), rows)


@app.command()
def cancel(job: JobId, db: options.Database = None) -> None:
    """End it, on its host too. Nothing that was made is deleted."""
    ask(db, job, CANCEL, {})


@app.command()
def retry(
    job: JobId,
    abandon: Annotated[
        bool,
        typer.Option(
            "--abandon", help="Take its attempt on a silent host for dead: start a new one."
        ),
    ] = False,
    db: options.Database = None,
) -> None:
    """Release a held, failed or cancelled job: go on at the stage that ended it."""
    ask(db, job, ABANDON if abandon else RETRY, {})


@app.command()
def rerun(
    job: JobId,
    start: Annotated[
        str, typer.Option("--from", metavar="STAGE", help="First stage to run again.")
    ],
    db: options.Database = None,
) -> None:
    """Run a settled job again from a stage on."""

    async def check(store: Store) -> None:
        stages = [stage.value for stage in stages_of((await known_job(store, job)).kind)]
        if start not in stages:
            raise UsageError("no such stage", where=start, fix=f"one of {', '.join(stages)}")

    with_store(db, check)
    ask(db, job, RETRY, {"stage": Stage(start).value})


# So that -2 is a number and no option.
@app.command(context_settings={"ignore_unknown_options": True})
def priority(
    job: JobId,
    value: Annotated[
        int, typer.Argument(min=-MOST_PRIORITY, max=MOST_PRIORITY, help="Higher goes first.")
    ],
    db: options.Database = None,
) -> None:
    """Change the order among jobs that wait. `cosma plan --what-if 'priority JOB N'` says before
    what it would change."""
    ask(db, job, PRIORITY, {"priority": value})


@app.command("set-aside")
def set_aside_inputs(
    job: JobId,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="The error area (default: ./cosma-errors, or COSMA_ERROR_AREA)."),
    ] = None,
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """Move the videos of a held, failed or cancelled job out of the way, so that no ingest meets
    them again; `cosma job retry` takes them from there."""
    area = DispatcherSettings.load(database=db, error_area=to).error_area

    async def work(store: Store) -> list[dict[str, str]]:
        moves = await set_aside(store, await known_job(store, job), area)
        return [{"from": str(move.source), "to": str(move.target)} for move in moves]

    moved = with_store(db, work)
    if json:
        print_json({"job": job, "moved": moved})
    elif moved:
        print_rows(("from", "to"), moved)
    print(f"{len(moved)} videos of {job} are set aside", file=sys.stderr)


def _short(payload: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in payload.items() if value not in ("", None))
