"""The dispatcher is killed again and again: every job ends, and no stage runs twice."""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from pathlib import Path

from tests.acceptance.cosma import kill
from tests.rehearsal import Rehearsal, rehearsal

KILL_EVERY_S = 3.0
MOST_KILLS = 100


def storm(farm: Rehearsal) -> int:
    """Until a dispatcher ends by itself; returns how many were killed."""
    for kills in range(MOST_KILLS):
        process = farm.cosma.start("dispatch", "--once")
        try:
            _, errors = process.communicate(timeout=KILL_EVERY_S)
        except subprocess.TimeoutExpired:
            kill(process, signal.SIGKILL)
            continue
        assert process.returncode == 0, errors
        return kills
    raise AssertionError(f"not done after {MOST_KILLS} kills: {farm.cosma.jobs()}")


def test_jobs_end_once_though_no_dispatcher_lives_longer_than_three_seconds(
    tmp_path: Path,
) -> None:
    with rehearsal(tmp_path, hosts=2) as farm:
        segments = farm.ingest(3)
        kills = storm(farm)
        assert kills >= 2, "the storm was over before it began"

        jobs = farm.cosma.jobs()
        assert set(segments) < set(jobs)  # and their stitch
        assert Counter(row["state"] for row in jobs.values()) == {"done": len(jobs)}
        runs = farm.runs()
        assert len(runs) == 8 * len(segments) + 1
        assert set(runs.values()) == {1}
