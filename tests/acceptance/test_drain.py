"""Hosts that are to be left alone, with a dispatcher that runs, dies and comes back."""

from __future__ import annotations

import signal
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.acceptance.cosma import EVENT_WAIT_S, is_so, kill, rows
from tests.rehearsal import Rehearsal, rehearsal


def at_work_on(*hosts: str) -> Callable[[sqlite3.Connection], bool]:
    """Each of these hosts runs an attempt, and has acknowledged it."""

    def seen(reader: sqlite3.Connection) -> bool:
        found = reader.execute("SELECT DISTINCT host FROM jobs WHERE step = 'run'")
        return {row[0] for row in found} >= set(hosts)

    return seen


def done(jobs: int) -> Callable[[sqlite3.Connection], bool]:
    def seen(reader: sqlite3.Connection) -> bool:
        count: int = reader.execute("SELECT count(*) FROM jobs WHERE state = 'done'").fetchone()[0]
        return count == jobs

    return seen


def hosts_listed(farm: Rehearsal) -> dict[str, str]:
    return {row["name"]: row["state"] for row in farm.cosma.json("worker", "ls")}


def test_a_drain_lets_stages_finish_moves_the_rest_and_outlives_the_dispatcher(
    tmp_path: Path,
) -> None:
    with rehearsal(tmp_path, hosts=2) as farm:
        cosma = farm.cosma
        segments = farm.ingest(4)  # a host holds two: one at work, one ready
        farm.hold(True)
        first = cosma.start("dispatch")
        cosma.wait_until("both hosts work", at_work_on("host-1", "host-2"))
        cosma.wait_until("all have a host", is_so("count(*) = 0 FROM jobs WHERE host IS NULL"))
        # Which host gets more of them is for whichever answered first: one works, the others wait.
        at = [host for (host,) in rows(cosma, "SELECT host FROM jobs WHERE host NOT NULL")]
        full, other = sorted({"host-1", "host-2"}, key=at.count, reverse=True)
        assert at.count(full) >= 2
        running, *more = rows(
            cosma, "SELECT id, attempt FROM jobs WHERE step = 'run' AND host = ?", full
        )
        assert not more
        drained = cosma.run("worker", "drain", full)
        assert drained.returncode == 0, drained.stderr
        (marked,) = rows(cosma, "SELECT id FROM events WHERE kind = 'host_drained'")[0]
        kill(first, signal.SIGKILL)
        assert hosts_listed(farm) == {full: "draining", other: "reachable"}

        second = cosma.start("dispatch")
        emptied = cosma.start("worker", "drain", full, "--wait")
        farm.hold(False)
        _, said = emptied.communicate(timeout=EVENT_WAIT_S)
        assert emptied.returncode == 0 and said.endswith(f"{full}: empty\n"), said
        left = rows(cosma, "SELECT id FROM jobs WHERE host = ? AND state != 'done'", full)
        assert left == []
        cosma.wait_until("every job is done, their stitch too", done(len(segments) + 1))
        kill(second, signal.SIGTERM)

        finished = rows(
            cosma, "SELECT state, host FROM attempts WHERE job = ? AND attempt = ?", *running
        )
        assert finished == [("succeeded", full)], "what ran there was let finish"
        placed = "SELECT count(*) FROM events WHERE kind = 'stage_placed' AND host = ?"
        assert rows(cosma, f"{placed} AND id > ?", full, marked) == [(0,)]
        assert rows(cosma, f"{placed} AND id < ?", full, marked) != [(0,)]


def test_a_cordoned_host_gets_nothing_until_it_is_resumed(tmp_path: Path) -> None:
    with rehearsal(tmp_path, hosts=2) as farm:
        cosma = farm.cosma
        cosma.variables["COSMA_PROBE_S"] = "1"  # a host that shows itself within one gets work
        farm.ingest(1)
        assert cosma.run("worker", "cordon", "host-1").returncode == 0
        assert cosma.run("worker", "cordon", "host-2").returncode == 0
        refused = cosma.run("dispatch", "--once")
        assert refused.returncode != 0
        assert "cosma worker resume" in refused.stdout + refused.stderr
        (job,) = cosma.jobs()
        assert cosma.jobs()[job]["state"] == "held"
        assert cosma.run("worker", "resume", "host-2").returncode == 0
        assert cosma.run("job", "retry", job).returncode == 0
        assert cosma.run("dispatch", "--once").returncode == 0
        assert rows(cosma, "SELECT DISTINCT host FROM attempts") == [("host-2",)]
        assert hosts_listed(farm) == {"host-1": "cordoned", "host-2": "reachable"}


def test_a_host_that_fails_every_job_is_shut_off_and_no_job_pays_for_it(tmp_path: Path) -> None:
    """Its stages die at once; probes see nothing wrong with it."""
    with rehearsal(tmp_path, hosts=2) as farm:
        cosma = farm.cosma
        hole = tmp_path / "broken-python"
        hole.write_text(
            f'#!/bin/sh\nif [ "$1" = -m ]; then exit 9; fi\nexec {sys.executable} "$@"\n'
        )
        hole.chmod(0o755)
        inventory = yaml.safe_load(cosma.inventory.read_text())
        inventory["hosts"][0]["stage_python"] = str(hole)
        cosma.inventory.write_text(yaml.safe_dump(inventory))

        segments = farm.ingest(4)  # a host holds two: one at work, one ready
        ended = cosma.run("dispatch", "--once")
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert Counter(row["state"] for row in cosma.jobs().values()) == {"done": len(segments) + 1}
        lost = rows(cosma, "SELECT count(*) FROM attempts WHERE host = 'host-1'")[0][0]
        assert 3 <= lost <= 6
        tested = rows(cosma, "SELECT payload FROM events WHERE kind = 'self_tested'")
        assert tested and all('"ok":false' in row[0] for row in tested)

        (bad,) = (row for row in cosma.json("worker", "ls") if row["name"] == "host-1")
        assert bad["state"] == "quarantined" and "self-test failed" in bad["quarantine"]
        assert "cosma worker resume host-1" in bad["quarantine"]
        assert cosma.run("worker", "resume", "host-1").returncode == 0
        assert hosts_listed(farm) == {"host-1": "reachable", "host-2": "reachable"}
