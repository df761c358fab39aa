"""The dispatcher is killed again and again: every job ends, and no stage runs twice."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.acceptance.cosma import kill
from tests.rehearsal import Rehearsal, rehearsal

KILL_EVERY_S = 2.0  # from the first that it has written down: a slow machine starts it slowly
MOST_KILLS = 100


def newest(reader: sqlite3.Connection) -> int:
    return int(reader.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0])


def at_work(process: subprocess.Popen[str], before: int) -> Callable[[sqlite3.Connection], bool]:
    return lambda reader: newest(reader) > before or process.poll() is not None


def storm(farm: Rehearsal) -> int:
    """Until a dispatcher ends by itself; returns how many were killed."""
    for kills in range(MOST_KILLS):
        with sqlite3.connect(farm.cosma.database) as reader:
            before = newest(reader)
        process = farm.cosma.start("dispatch", "--once")
        farm.cosma.wait_until("it works, or has ended", at_work(process, before))
        try:
            _, errors = process.communicate(timeout=KILL_EVERY_S)
        except subprocess.TimeoutExpired:
            kill(process, signal.SIGKILL)
            continue
        assert process.returncode == 0, errors
        return kills
    raise AssertionError(f"not done after {MOST_KILLS} kills: {farm.cosma.jobs()}")


def test_jobs_end_once_though_no_dispatcher_works_longer_than_two_seconds(
    tmp_path: Path,
) -> None:
    with rehearsal(tmp_path, hosts=2, pace=1.0) as farm:
        segments = farm.ingest(3)
        kills = storm(farm)
        assert kills >= 2, "the storm was over before it began"

        jobs = farm.cosma.jobs()
        assert set(segments) < set(jobs)  # and their stitch
        assert Counter(row["state"] for row in jobs.values()) == {"done": len(jobs)}
        runs = farm.runs()
        assert len(runs) == 8 * len(segments) + 1
        assert set(runs.values()) == {1}
