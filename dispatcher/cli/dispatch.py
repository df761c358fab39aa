"""`cosma dispatch`: the dispatcher itself."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from typing import Annotated

import typer

from dispatcher import event_loop
from dispatcher.cli import options
from dispatcher.cli.render import print_json
from dispatcher.core.model import JobState
from dispatcher.daemon import Ended, run_dispatcher
from dispatcher.errors import ExitCode, NoHost, UsageError
from dispatcher.operator_log import operator_log
from dispatcher.settings import DispatcherSettings


def dispatch(
    once: Annotated[
        bool, typer.Option("--once", help="Work until nothing is left to do, then exit.")
    ] = False,
    inventory: options.Inventory = None,
    db: options.Database = None,
    artifacts: options.Artifacts = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also say the small steps.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Place, run, collect and stitch. One dispatcher per database; SIGTERM leaves the hosts'
    work running and the next start takes it up again."""
    settings = DispatcherSettings.load(database=db, artifacts=artifacts)
    place = settings.artifacts
    if place.exists() and not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        why = "it may not be written" if place.is_dir() else "it is no directory"
        raise UsageError(
            "results cannot go there", where=str(place), why=why,
            fix="Name another one with --artifacts",
        )  # fmt: skip
    with operator_log(logging.DEBUG if verbose else logging.INFO):
        ended = event_loop.run(run_dispatcher(settings, inventory, once=once))
    states = Counter(job.state.value for job in ended.jobs.values())
    if json:
        print_json({"jobs": dict(sorted(states.items())), "unreachable": ended.unreachable})
    else:
        counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        print(counts or "no jobs", file=sys.stderr)
    raise typer.Exit(_exit_code(ended) if once or ended.interrupted else ExitCode.OK)


def _exit_code(ended: Ended) -> ExitCode:
    if ended.interrupted:
        return ExitCode.INTERRUPTED
    unfinished = [job for job in ended.jobs.values() if job.state is not JobState.DONE]
    if not unfinished:
        return ExitCode.OK
    if len(ended.unreachable) == ended.hosts:
        first = next(iter(ended.unreachable.values()), "the inventory names none")
        raise NoHost("no host could be used", why=first, fix="see `cosma worker ls`")
    return ExitCode.PARTIAL
