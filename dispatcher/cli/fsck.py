"""`cosma fsck`: do the database, the hosts and the artifact store agree?"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from typing import Annotated

import typer

from dispatcher import agent_bundle
from dispatcher.cli import options
from dispatcher.cli.render import print_json, print_rows
from dispatcher.cli.stored import with_store
from dispatcher.errors import ExitCode
from dispatcher.executors.ssh import SshExecutor
from dispatcher.fleet import Fleet
from dispatcher.fsck import Report, check, repair
from dispatcher.inventory import find_inventory
from dispatcher.object_store import ObjectStore
from dispatcher.settings import DispatcherSettings
from dispatcher.store.base import Store
from dispatcher.store.lock import DispatcherLock

COLUMNS = ("kind", "job", "where", "repaired", "message", "advice")


def fsck(
    fix: Annotated[
        bool, typer.Option("--fix", help="Repair what can be repaired without losing anything.")
    ] = False,
    inventory: options.Inventory = None,
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """Compare the database, the hosts and the collected results; list what differs.

    Exit code 0: nothing; 1: something; 3: nothing, but a host was silent.
    --fix needs the database for itself: stop the dispatcher first."""
    hosts = find_inventory(inventory)
    bundle = agent_bundle.build()
    settings = DispatcherSettings.load(database=db)
    remote = ObjectStore(settings.artifacts_url) if settings.artifacts_url else None

    async def work(store: Store) -> Report:
        fleet = Fleet.of(hosts, lambda host: SshExecutor.connect_to(host, bundle))
        try:
            report = await check(store, fleet)
            return await repair(store, fleet, report, remote) if fix else report
        finally:
            await fleet.close()

    with contextlib.ExitStack() as stack:
        if fix:
            stack.enter_context(DispatcherLock(settings.database))
        report = with_store(db, work)
    rows = [dataclasses.asdict(item) for item in report.differences]
    if json:
        print_json(
            {
                "differences": rows,
                "unanswered": dict(report.unanswered),
                "hosts": report.hosts,
                "jobs": report.jobs,
            }
        )
    elif rows:
        print_rows(COLUMNS, rows)
    for host, why in report.unanswered.items():
        print(f"{host} did not answer: {why.removeprefix(f'{host}: ')}", file=sys.stderr)
    left = len(report.left)
    print(
        f"{report.jobs} jobs, {report.hosts - len(report.unanswered)} of {report.hosts} hosts: "
        + (f"{left} differences" if left else "nothing differs"),
        file=sys.stderr,
    )
    if left:
        raise typer.Exit(ExitCode.FAILED)
    if report.unanswered:
        raise typer.Exit(ExitCode.PARTIAL)
