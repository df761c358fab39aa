"""Three drills with every fault: nothing is lost, nothing runs twice, nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dispatcher.chaos.schedule import plan
from tests.acceptance.cosma import EVENT_WAIT_S

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


def mentioning(text: str) -> list[str]:
    """Command lines of all processes, also of other namespaces, that name `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if text in command:
                found.append(command)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_drill_that_is_ended_leaves_no_process(number: signal.Signals, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("chaos", "--hosts", "2", "--jobs", "3", "--out", str(out))
    process = subprocess.Popen(
        [sys.executable, "-m", "dispatcher.cli", *words], stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline().startswith("after ")  # hosts, jobs and dispatcher are at work
    assert len(mentioning(str(out))) > 3
    process.send_signal(number)
    process.communicate(timeout=EVENT_WAIT_S)
    deadline = time.monotonic() + EVENT_WAIT_S
    while (left := mentioning(str(out))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    done = subprocess.run(
        [sys.executable, "-m", "dispatcher.cli", "chaos", "--out", str(tmp_path)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 2 and "not an empty directory" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
