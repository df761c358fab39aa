"""The dispatcher is killed every few seconds until one ends by itself: does every job end, does any
stage run twice, and how soon is a running attempt followed again?

Real sshd, agent, supervisor and store on loopback; only the stages are played short.

reattach: in a restarted dispatcher, from the moment it takes up an attempt that the database shows
as running (it knows the host and nothing is connected yet) to the first frame about that attempt
from the agent's `follow`: connecting, finding or putting the agent, starting it, sending the
offsets, and reading the database in between. The seconds are the dispatcher's own
(`attempt_reattached` events); starting the interpreter of the dispatcher is not part of it. One
that a kill cuts off has no figure and is counted in reattaches_cut_off.

connect: SSH connect, `true`, its exit status, by the same transport with the same keys in a process
that runs already. It is done to all hosts at once, as a restarted dispatcher connects, again and
again while the storm goes on: both see the same load.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench.results import Result, parser, percentile, show
from dispatcher.embedded import EmbeddedHost
from dispatcher.transport.ssh import SshTransport
from dispatcher.transport.target import SshTarget
from tests.acceptance.cosma import kill
from tests.rehearsal import Rehearsal, rehearsal

BETWEEN_CONNECTS_S = (0.2, 0.8)
MOST_KILLS = 300


def storm(farm: Rehearsal, every_s: float) -> int:
    """Until a dispatcher ends by itself; returns how many were killed."""
    for kills in range(MOST_KILLS):
        process = farm.cosma.start("dispatch", "--once")
        try:
            _, errors = process.communicate(timeout=every_s)
        except subprocess.TimeoutExpired:
            kill(process, signal.SIGKILL)
            continue
        if process.returncode:
            print(errors, file=sys.stderr)
        return kills
    return MOST_KILLS


async def connect_s(host: EmbeddedHost) -> float:
    """Seconds of one connection made for one command."""
    link = SshTransport(
        SshTarget(
            name=host.name,
            address="127.0.0.1",
            port=host.port,
            user=host.user,
            identity_file=host.identity_file,
            host_key=host.host_key,
        )
    )
    began = time.monotonic()
    try:
        await link.run(["true"])
        return time.monotonic() - began
    finally:
        await link.close()


@contextlib.contextmanager
def connecting(hosts: tuple[EmbeddedHost, ...]) -> Iterator[list[float]]:
    """Connects to all hosts at once, over and over, until the block ends."""
    seconds: list[float] = []
    over = threading.Event()

    async def burst() -> list[float]:
        return list(await asyncio.gather(*(connect_s(host) for host in hosts)))

    def work() -> None:
        with asyncio.Runner() as runner:
            runner.run(burst())  # what the first one loads is not the price of a connect
            while not over.wait(random.uniform(*BETWEEN_CONNECTS_S)):
                seconds.extend(runner.run(burst()))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield seconds
    finally:
        over.set()
        thread.join()


def reattached(database: Path) -> tuple[list[float], int]:
    """Seconds of every re-attach, and how many a kill cut off: an attempt that ran when a
    dispatcher started, and that this dispatcher did not follow."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as reader:
        seconds = [
            json.loads(payload)["seconds"]
            for (payload,) in reader.execute(
                "SELECT payload FROM events WHERE kind = 'attempt_reattached'"
            )
        ]
        (expected,) = reader.execute(
            "SELECT count(*) FROM dispatchers AS d JOIN attempts AS a"
            " ON a.started_at < d.started_at"
            " AND (a.ended_at IS NULL OR a.ended_at > d.started_at)"
        ).fetchone()
    return seconds, max(0, expected - len(seconds))


def measure(farm: Rehearsal, jobs: int, every_s: float) -> list[Result]:
    farm.ingest(jobs)
    began = time.monotonic()
    with connecting(farm.hosts.hosts) as connects:
        kills = storm(farm, every_s)
    wall = time.monotonic() - began
    states = [row["state"] for row in farm.cosma.jobs().values()]
    done = states.count("done")
    twice = sum(runs > 1 for runs in farm.runs().values())
    seconds, cut_off = reattached(farm.cosma.database)
    if not seconds:
        raise SystemExit("no attempt was running at any restart: more --jobs, or kill less often")
    attach, connect = percentile(seconds, 0.95), percentile(connects, 0.95)
    return [
        Result(name="jobs_done", value=done, unit="", better="higher", target=jobs + 1),  # + stitch
        Result(name="jobs_stuck", value=len(states) - done, unit="", better="lower", target=0),
        Result(name="stages_run_twice", value=twice, unit="", better="lower", target=0),
        Result(name="kills", value=kills, unit="", better="higher"),
        Result(name="wall_s", value=wall, unit="s", better="lower"),
        Result(name="reattaches", value=len(seconds), unit="", better="higher"),
        Result(name="reattaches_cut_off", value=cut_off, unit="", better="lower"),
        Result(
            name="reattach_p50_ms", value=1e3 * statistics.median(seconds), unit="ms",
            better="lower",
        ),
        Result(name="reattach_p95_ms", value=1e3 * attach, unit="ms", better="lower"),
        Result(name="connects", value=len(connects), unit="", better="higher"),
        Result(
            name="connect_p50_ms", value=1e3 * statistics.median(connects), unit="ms",
            better="lower",
        ),
        Result(name="connect_p95_ms", value=1e3 * connect, unit="ms", better="lower"),
        Result(
            name="reattach_p95_over_connect_p95", value=attach / connect, unit="",
            better="lower", target=3.0,
        ),
    ]  # fmt: skip


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--jobs", type=int, default=24)
    options.add_argument("--hosts", type=int, default=4)
    options.add_argument("--kill-every-s", type=float, default=3.0)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as base, rehearsal(Path(base), given.hosts) as farm:
        results = measure(farm, given.jobs, given.kill_every_s)
    return show("reattach", results, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
