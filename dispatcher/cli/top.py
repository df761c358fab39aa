"""`cosma top`: the farm live, one row per GPU and per job."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from dispatcher.cli import options
from dispatcher.cli.eta import eta_short, load_outlook
from dispatcher.cli.jobs import COLUMNS, load_rows
from dispatcher.cli.render import print_json, print_rows
from dispatcher.cli.stored import with_store
from dispatcher.core.outlook import Outlook
from dispatcher.heartbeat import heartbeat_age_s
from dispatcher.risk import load_risks
from dispatcher.settings import DispatcherSettings
from dispatcher.store.base import Store
from dispatcher.tui.view import GpuRow, Snapshot, render

OUTLOOK_S = 15.0  # between two forecasts of a live view


async def load_snapshot(store: Store, database: Path, outlook: Outlook | None) -> Snapshot:
    now = time.time()
    jobs = {job.id: job for job in await store.load_jobs()}
    promised = {
        (job.host, job.reservation.gpu): job
        for job in jobs.values()
        if job.reservation is not None and job.reservation.gpu and job.reservation.mib
    }
    gpus = await store.gpus()
    rows = []
    for host in await store.hosts():
        age = None if host.probed_at is None else max(0.0, now - host.probed_at)
        own = [gpu for gpu in gpus if gpu.host == host.name]
        for gpu in own:
            job = promised.get((host.name, gpu.uuid))
            rows.append(
                GpuRow(
                    host=host.name,
                    state=host.state,
                    gpu=gpu.name,
                    used_mib=gpu.total_mib - gpu.free_mib,
                    total_mib=gpu.total_mib,
                    reserved_mib=job.reservation.mib if job and job.reservation else 0,
                    job=job.id if job else "",
                    stage=job.stage.value if job else "",
                    age_s=None if age is None else max(age, now - gpu.updated_at),
                    message=host.message,
                )
            )
        if not own:
            rows.append(
                GpuRow(
                    host=host.name, state=host.state, gpu="", used_mib=0, total_mib=0,
                    reserved_mib=0, job="", stage="", age_s=age, message=host.message,
                )
            )  # fmt: skip
    return Snapshot(
        gpus=tuple(rows),
        jobs=tuple(await load_rows(store, None, outlook)),
        dispatcher_age_s=heartbeat_age_s(database, now),
        risks=tuple(await load_risks(store)),
        now=now,
    )


def top(
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between looks.")] = 1.0,
    inventory: options.Inventory = None,
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """Follow the farm until Ctrl-C. Off a terminal, or with --json, print once."""
    database = DispatcherSettings.load(database=db).database

    async def once(store: Store) -> Snapshot:
        outlook = await load_outlook(store, database, inventory)
        return await load_snapshot(store, database, outlook)

    async def live(store: Store) -> None:
        console = Console()
        with Live(console=console, screen=True, auto_refresh=False) as view:
            due, outlook = 0.0, None
            while True:
                if time.monotonic() >= due:
                    outlook = await load_outlook(store, database, inventory)
                    due = time.monotonic() + OUTLOOK_S
                snapshot = await load_snapshot(store, database, outlook)
                view.update(render(snapshot, height=console.size.height), refresh=True)
                await asyncio.sleep(interval)

    if json:
        print_json(dataclasses.asdict(with_store(db, once)))
    elif sys.stdout.isatty():
        with_store(db, live)
    else:
        snapshot = with_store(db, once)
        print_rows(
            ("host", "state", "gpu", "used_mib", "total_mib", "reserved_mib", "stage", "job"),
            [dataclasses.asdict(row) for row in snapshot.gpus],
        )
        print_rows(
            COLUMNS,
            [
                {**dataclasses.asdict(row), "eta": eta_short(row.eta, snapshot.now)}
                for row in snapshot.jobs
            ],
        )
        for risk in snapshot.risks:
            print(f"{risk.line(snapshot.now)} ({risk.why})")
