"""Three drills with every fault: nothing is lost, nothing runs twice, nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dispatcher.chaos.schedule import plan

LIMIT_S = 300.0  # of one drill; it takes a fraction of it


def drill(out: Path, *, hosts: int, jobs: int, seed: int) -> tuple[int, dict[str, Any]]:
    words = ("chaos", "--hosts", hosts, "--jobs", jobs, "--seed", seed, "--json", "--out", out)
    done = subprocess.run(
        [sys.executable, "-m", "dispatcher.cli", *map(str, words)], stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize(("seed", "jobs"), [(1, 6), (2, 4), (3, 4)])
def test_a_drill_breaks_nothing(seed: int, jobs: int, tmp_path: Path) -> None:
    code, verdict = drill(tmp_path / "out", hosts=3, jobs=jobs, seed=seed)
    details = verdict["details"]
    assert list(verdict) == [
        "seed", "hosts", "jobs", "done", "held", "faults", "broken_invariants", "details",
    ]  # fmt: skip
    assert (code, details["broken"]) == (0, {}), details
    assert verdict["done"] == jobs - len(details["expected_held"])
    assert verdict["held"] == len(details["expected_held"]) == 1
    # Not one fault of the plan was left out.
    planned = plan(seed, ["host-1", "host-2", "host-3"], jobs, (jobs - 1) * 8)
    assert verdict["faults"] == len(planned)
    assert details["runs"] > 8 * verdict["done"]


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    done = subprocess.run(
        [sys.executable, "-m", "dispatcher.cli", "chaos", "--out", str(tmp_path)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 2 and "not an empty directory" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
