"""`cosma chaos`: does the farm lose anything when everything happens to it?"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from dispatcher.chaos.hosts import namespaces_allowed
from dispatcher.chaos.run import Drill, Verdict
from dispatcher.cli import options
from dispatcher.cli.render import print_json
from dispatcher.errors import ExitCode, UsageError


def chaos(
    hosts: Annotated[int, typer.Option(min=1, max=50, help="Hosts to make.")] = 4,
    jobs: Annotated[int, typer.Option(min=1, max=500, help="Segments to bring through.")] = 12,
    seed: Annotated[int, typer.Option(help="Decides every fault; the same seed replays.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="Keep database, logs and hosts' files there.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Drill the dispatcher with faults, on hosts made for it.

    Real SSH hosts in namespaces of their own, short stages, and a seeded schedule of faults; then
    the logs of both sides are checked. Exit code 0 only when no invariant is broken.

    Without root the hosts share this machine's network: what then cannot happen to them is named,
    and the exit code is 3.
    """
    # A drill that is told to end takes its hosts down first.
    signal.signal(signal.SIGTERM, _interrupt)
    directory = _directory(out)
    loopback = not namespaces_allowed()
    if loopback:
        _tell("no namespaces can be made here (it takes root, iproute2 and util-linux)")
    verdict = Drill(directory, hosts, jobs, seed, _tell, loopback).run()
    if json:
        print_json(verdict.as_dict())
    else:
        _print(verdict)
    if verdict.broken_invariants:
        raise typer.Exit(ExitCode.FAILED)
    if out is None:
        shutil.rmtree(directory)
    if loopback:
        raise typer.Exit(ExitCode.PARTIAL)


def _directory(out: Path | None) -> Path:
    if out is None:
        return Path(tempfile.mkdtemp(prefix="cosma-chaos-"))
    directory = out.expanduser().absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError("not an empty directory", where=str(directory), fix="give another --out")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _print(verdict: Verdict) -> None:
    print(
        f"seed {verdict.seed}: {verdict.done} of {verdict.jobs} jobs done, {verdict.held} held "
        f"({len(verdict.details['expected_held'])} named in advance), {verdict.faults} faults, "
        f"{verdict.details['seconds']:.0f} s"
    )
    if verdict.details["not_possible"]:
        print(f"not possible here: {', '.join(verdict.details['not_possible'])}")
    for invariant, findings in verdict.details["broken"].items():
        print(f"broken: {invariant}")
        for line in findings:
            print(f"  {line}")
    if verdict.broken_invariants:
        print(f"replay: {verdict.details['replay']}; evidence: {verdict.details['directory']}")
