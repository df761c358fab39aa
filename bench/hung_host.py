"""One of four hosts hangs: its server accepts connections and answers nothing. How much longer do
the other hosts' jobs take than on a farm that never had it, and is the operator told?

Real sshd, agent, supervisor and store on loopback; only the stages are played short. A host is
hung by SIGSTOP of its sshd and of all sessions: the kernel still completes connections to it.

makespan: from the start of the dispatcher's process to the end of the last job that is not on the
hung host, for the same number of jobs each time:
  three hosts: the fourth is not in the inventory.
  hung: the fourth is in it and hangs before the dispatcher starts: all jobs are the others'.
  hung midway: it hangs as soon as it runs a stage. What it was given stays with it until the lease
      has run out, and is counted in jobs_on_hung_host; without a target.
Interleaved, medians.

told_by_*: with all stages held at work, so that jobs wait, do `cosma why` of a waiting job and
`cosma worker ls` name the hung host, and that it does not answer?
"""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from bench.results import Result, parser, show
from dispatcher.chaos.processes import kill
from tests.acceptance.cosma import Cosma
from tests.rehearsal import Rehearsal, rehearsal

LIMIT_S = 900.0
HUNG = "host-4"
HOSTS = 4
Seen = Callable[[sqlite3.Connection], Any]


@dataclass(frozen=True, slots=True)
class Run:
    makespan_s: float
    on_hung_host: int


def until(database: Path, what: str, seen: Seen) -> Any:
    """The first answer of `seen` that is true. Raises SystemExit after LIMIT_S."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if found := look(database, seen):
            return found
        time.sleep(0.05)
    raise SystemExit(f"not within {LIMIT_S:.0f} s: {what}")


def look(database: Path, seen: Seen) -> Any:
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as reader:
        return seen(reader)


def others_done(reader: sqlite3.Connection) -> bool:
    (left,) = reader.execute(
        "SELECT count(*) FROM jobs WHERE kind = 'reconstruct' AND state != 'done'"
        " AND COALESCE(host, '') != ?",
        (HUNG,),
    ).fetchone()
    return not left


def on_hung_host(reader: sqlite3.Connection) -> int:
    query = "SELECT count(*) FROM jobs WHERE host = ? AND state != 'done'"
    return int(reader.execute(query, (HUNG,)).fetchone()[0])


def runs_there(reader: sqlite3.Connection) -> bool:
    query = "SELECT count(*) FROM attempts WHERE host = ? AND state = 'running'"
    return bool(reader.execute(query, (HUNG,)).fetchone()[0])


def blamed(reader: sqlite3.Connection) -> str | None:
    """A waiting job of which it is written down that the hung host cannot be reached."""
    for job, per_host in reader.execute("SELECT job, per_host FROM waiting"):
        if "cannot be reached" in json.loads(per_host).get(HUNG, ""):
            return str(job)
    return None


@contextlib.contextmanager
def hanging(farm: Rehearsal) -> Iterator[None]:
    """From now on, sshd and its sessions are there and do nothing."""
    stopped = farm.hosts.sshd_pids(HUNG)
    for pid in stopped:
        kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def dispatching(farm: Rehearsal) -> Iterator[None]:
    process = farm.cosma.start("dispatch")
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def new_survey(farm: Rehearsal, name: str, jobs: int, *, hosts: int = HOSTS) -> Rehearsal:
    """The same hosts, or the first of them, with a database and footage of its own."""
    directory = farm.cosma.directory / name
    directory.mkdir()
    inventory = yaml.safe_load(farm.hosts.inventory.read_text())
    inventory["hosts"] = inventory["hosts"][:hosts]
    file = directory / "inventory.yaml"
    file.write_text(yaml.safe_dump(inventory))
    survey = replace(farm, cosma=Cosma(directory, file))
    survey.ingest(jobs, acquisition=name)
    return survey


def three_hosts(farm: Rehearsal, name: str, jobs: int) -> Run:
    survey = new_survey(farm, name, jobs, hosts=HOSTS - 1)
    return until_others_done(survey)


def hung(farm: Rehearsal, name: str, jobs: int) -> Run:
    survey = new_survey(farm, name, jobs)
    with hanging(farm):
        return until_others_done(survey)


def hung_midway(farm: Rehearsal, name: str, jobs: int) -> Run:
    survey = new_survey(farm, name, jobs)
    began = time.monotonic()
    with dispatching(survey):
        until(survey.cosma.database, f"a stage runs on {HUNG}", runs_there)
        with hanging(farm):
            until(survey.cosma.database, "the other hosts' jobs are done", others_done)
            makespan = time.monotonic() - began
            return Run(makespan, look(survey.cosma.database, on_hung_host))


def until_others_done(survey: Rehearsal) -> Run:
    began = time.monotonic()
    with dispatching(survey):
        until(survey.cosma.database, "the other hosts' jobs are done", others_done)
        return Run(time.monotonic() - began, 0)


def told(farm: Rehearsal, jobs: int) -> tuple[bool, bool]:
    """By `cosma why` and by `cosma worker ls`."""
    survey = new_survey(farm, "told", jobs)
    farm.hold(True)
    try:
        with hanging(farm), dispatching(survey):
            job = until(survey.cosma.database, f"a job waits and {HUNG} is blamed", blamed)
            why = survey.cosma.json("why", job)
            listed = json.loads(survey.cosma.run("worker", "ls", "--json").stdout)
    finally:
        farm.hold(False)
    line = why["per_host"].get(HUNG, "")
    row = next(row for row in listed if row["name"] == HUNG)
    print(f"why: {line}\nworker ls: {row['state']}, {row['reason']}", file=sys.stderr)
    return (
        "no answer" in line,
        (row["state"], row["reason"]) == ("unreachable", "host_unreachable"),
    )


def measure(farm: Rehearsal, jobs: int, repeats: int) -> list[Result]:
    kinds = {"three": three_hosts, "hung": hung, "midway": hung_midway}
    runs: dict[str, list[Run]] = {kind: [] for kind in kinds}
    for repeat in range(repeats):
        for kind, play in kinds.items():
            runs[kind].append(play(farm, f"{kind}-{repeat}", jobs))
    by_why, by_list = told(farm, jobs)
    three, never, midway = (
        statistics.median(run.makespan_s for run in runs[kind]) for kind in kinds
    )
    left = statistics.median(run.on_hung_host for run in runs["midway"])
    return [
        Result(
            name="hung_over_three_hosts", value=never / three, unit="", better="lower", target=1.5
        ),
        Result(name="told_by_why", value=by_why, unit="", better="higher", target=1),
        Result(name="told_by_worker_ls", value=by_list, unit="", better="higher", target=1),
        Result(name="makespan_three_hosts_s", value=three, unit="s", better="lower"),
        Result(name="makespan_hung_s", value=never, unit="s", better="lower"),
        Result(name="hung_midway_over_three_hosts", value=midway / three, unit="", better="lower"),
        Result(name="jobs_on_hung_host", value=left, unit="", better="lower"),
    ]


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--jobs", type=int, default=12)
    options.add_argument("--repeats", type=int, default=3)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as base, rehearsal(Path(base), HOSTS) as farm:
        results = measure(farm, given.jobs, given.repeats)
    return show("hung_host", results, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
