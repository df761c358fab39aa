"""The SSH connection is killed fifty times while a stage talks: every word of it arrives once."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

from dispatcher.chaos.processes import kill as kill_process
from tests.acceptance.cosma import EVENT_WAIT_S, kill
from tests.rehearsal import Rehearsal, rehearsal

EVENTS = 20_000
KILLS = 50
# One kill in five hits a connection that is still being made; each of the others, a batch.
CONNECTING = KILLS // 5
BATCHES = KILLS - CONNECTING
BATCH = EVENTS // BATCHES

# In the place of Validation: counts, and waits before each batch, and before its end, for a byte
# from the test. Then it is rehearsed as the others are.
TALKS = f"""\
import json, os, sys, time
if json.load(open(sys.argv[1]))["spec"]["stage"] == "Validation":
    events, gate = int(os.environ["COSMA_EVENTS_FD"]), os.open({{gate!r}}, os.O_RDONLY)
    for number in range({EVENTS}):
        if number % {BATCH} == 0:
            os.read(gate, 1)
        line = {{{{"kind": "counted", "number": number, "text": "x" * (number % 90)}}}}
        os.write(events, json.dumps(line).encode() + b"\\n")
        os.write(1, b"counted %d \\xff\\n" % number)
        time.sleep(0.0002)
    os.read(gate, 1)
os.execv(sys.executable, [sys.executable, "-m", "worker_agent.rehearse", sys.argv[1]])
"""


def talkative(farm: Rehearsal, gate: Path) -> None:
    """From now on the first stage of a job counts."""
    file = farm.log.with_name("talks.py")
    file.write_text(TALKS.format(gate=str(gate)))
    farm.log.with_name("stage-python").write_text(
        f"#!/bin/sh\nexport COSMA_RUN_LOG={farm.log}\n"
        f'if [ "$2" = worker_agent.stages ]; then exec {sys.executable} {file} "$3"; fi\n'
        f'exec {sys.executable} "$@"\n'
    )


def kill_sessions(farm: Rehearsal) -> int:
    """Every process that serves a connection to host-1, by its pid."""
    return sum(kill_process(pid) for pid in farm.hosts.sshd_pids("host-1")[1:])


def kill_a_connection(farm: Rehearsal) -> None:
    """The next one that shows itself."""
    deadline = time.monotonic() + EVENT_WAIT_S
    while not kill_sessions(farm):
        assert time.monotonic() < deadline, "nobody connects any more"
        time.sleep(0.001)


def wait_until_stored(reader: sqlite3.Connection, events: int) -> None:
    """So many of the counted ones, and perhaps more: the stage goes on meanwhile."""
    deadline = time.monotonic() + EVENT_WAIT_S
    query = "SELECT count(*) FROM events WHERE attempt = 1 AND kind = 'counted'"
    while reader.execute(query).fetchone()[0] < events:
        assert time.monotonic() < deadline, f"{events} events do not arrive"
        time.sleep(0.005)


def storm(farm: Rehearsal, gate: int) -> None:
    chance = random.Random(6)
    with closing(sqlite3.connect(f"file:{farm.cosma.database}?mode=ro", uri=True)) as reader:
        for batch in range(BATCHES):
            os.write(gate, b"+")
            wait_until_stored(reader, batch * BATCH + chance.randrange(1, BATCH))
            assert kill_sessions(farm) > 0
            if batch * CONNECTING % BATCHES == 0:
                kill_a_connection(farm)
    os.write(gate, b"+")


def test_twenty_thousand_events_survive_fifty_killed_sessions(tmp_path: Path) -> None:
    path = tmp_path / "gate"
    os.mkfifo(path)
    with rehearsal(tmp_path, hosts=1) as farm:
        talkative(farm, path)
        (job,) = farm.ingest(1)
        gate = os.open(path, os.O_RDWR)  # with a reader of its own, so that no write waits
        try:
            dispatcher = farm.cosma.start("dispatch")
            farm.cosma.wait_until("the stage runs", lambda r: bool(r.execute(
                "SELECT count(*) FROM events WHERE kind = 'started'").fetchone()[0]))  # fmt: skip
            storm(farm, gate)
            farm.cosma.wait_until("its end is known", lambda r: bool(r.execute(
                "SELECT count(*) FROM attempts WHERE attempt = 1 AND state = 'succeeded'"
            ).fetchone()[0]))  # fmt: skip
            kill(dispatcher, signal.SIGTERM)
        finally:
            os.close(gate)

        with closing(sqlite3.connect(farm.cosma.database)) as reader:
            numbers = [json.loads(row[0])["number"] for row in reader.execute(
                "SELECT payload FROM events WHERE kind = 'counted' ORDER BY id")]  # fmt: skip
            stored = b"".join(row[0] for row in reader.execute(
                "SELECT data FROM logs WHERE attempt = 1 ORDER BY position"))  # fmt: skip
            (losses,) = reader.execute(
                "SELECT count(*) FROM events WHERE kind = 'host_silent'"
            ).fetchone()
        assert losses >= BATCHES, "a kill nobody noticed proves nothing"
        assert numbers == list(range(EVENTS))
        written = farm.hosts.hosts[0].work_dir / "reef" / job / "attempts" / "1" / "log"
        assert stored == written.read_bytes()
        counted = b"".join(b"counted %d \xff\n" % number for number in range(EVENTS))
        assert stored.startswith(counted)
        assert farm.runs()[job, "Validation"] == 1
