"""Forty jobs beside a program that takes and frees GPU memory at random.

Hosts have simulated GPUs (tests/simulated_gpu): the agent asks them by NVML, stages and thief take
memory from the same device, and the device refuses what it does not have.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.rehearsal import rehearsal
from tests.simulated_gpu.driver import SimulatedGpus
from tests.simulated_gpu.farm import simulate

JOBS = 40
TOO_LITTLE, TAKEN = "gpu_out_of_memory", "gpu_memory_taken"  # what a job was promised
AMBUSHES = 3
HEADROOM_MIB = 256
GPUS = {
    "host-1": ["gpu GPU-1 12288 200 ok"],
    "host-2": ["gpu GPU-2 8192 150 ok", "gpu GPU-3 16384 250 ok"],
    "host-3": ["gpu GPU-4 24576 300 ok"],
}
# A probe is written down just after decisions may use it.
LAG_S = 2.0

# What was known and promised, in the order in which it was committed.
DIARY = """
CREATE TABLE diary (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL DEFAULT ((julianday('now') - 2440587.5) * 86400.0),
    kind TEXT, host TEXT, job TEXT, attempt INTEGER, gpu TEXT, mib INTEGER, facts TEXT
);
CREATE TRIGGER probed AFTER UPDATE OF facts ON hosts BEGIN
    INSERT INTO diary (kind, host, facts) VALUES ('probe', NEW.name, NEW.facts);
END;
CREATE TRIGGER probed_first AFTER INSERT ON hosts BEGIN
    INSERT INTO diary (kind, host, facts) VALUES ('probe', NEW.name, NEW.facts);
END;
CREATE TRIGGER promised AFTER INSERT ON reservations BEGIN
    INSERT INTO diary (kind, host, job, attempt, gpu, mib)
    VALUES ('promise', NEW.host, NEW.job, NEW.attempt, NEW.gpu, NEW.mib);
END;
CREATE TRIGGER released AFTER DELETE ON reservations BEGIN
    INSERT INTO diary (kind, host, job, attempt, gpu, mib)
    VALUES ('release', OLD.host, OLD.job, OLD.attempt, OLD.gpu, OLD.mib);
END;
"""


@dataclass(frozen=True, slots=True)
class Promise:
    at: float
    host: str
    job: str
    attempt: int
    gpu: str
    mib: int
    others: tuple[tuple[str, int, int], ...]  # (job, attempt, MiB) promised of the same GPU
    told: tuple[dict[str, Any], ...]  # the GPU's facts that the decision may have seen


@contextmanager
def thief(seed: int, gpus: list[SimulatedGpus], log: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.simulated_gpu.thief", str(seed), str(AMBUSHES)]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, *(str(one.directory) for one in gpus)], cwd=REPOSITORY, stderr=errors
        )
    try:
        yield
        assert process.poll() is None, log.read_text()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def promises(database: Path) -> list[Promise]:
    with sqlite3.connect(database) as reader:
        reader.row_factory = sqlite3.Row
        rows = reader.execute("SELECT * FROM diary ORDER BY id").fetchall()
    live: dict[str, dict[tuple[str, int], int]] = defaultdict(dict)
    last: dict[str, Any] = {}
    found = []
    for at, row in enumerate(rows):
        if row["kind"] == "probe":
            last[row["host"]] = row
        elif not row["mib"]:  # no device, or of one its decoder alone
            continue
        elif row["kind"] == "release":
            live[row["gpu"]].pop((row["job"], row["attempt"]), None)
        else:
            after = next(
                (
                    r
                    for r in rows[at:]
                    if r["kind"] == "probe" and r["host"] == row["host"]
                    and r["at"] - row["at"] < LAG_S
                ),
                None,
            )  # fmt: skip
            others = tuple((job, n, mib) for (job, n), mib in live[row["gpu"]].items())
            told = [json.loads(r["facts"]) for r in (last[row["host"]], after) if r is not None]
            gpus = [gpu for facts in told for gpu in facts["gpus"] if gpu["uuid"] == row["gpu"]]
            found.append(
                Promise(
                    row["at"], row["host"], row["job"], row["attempt"], row["gpu"], row["mib"],
                    others, tuple(gpus),
                )
            )  # fmt: skip
            live[row["gpu"]][row["job"], row["attempt"]] = row["mib"]
    return found


def left_mib(promise: Promise, gpu: dict[str, Any]) -> int:
    """What was there to promise by these facts: free, with what ended attempts held, without what
    was promised to others and is not in use yet."""
    used: Counter[tuple[str, int]] = Counter()
    for process in gpu["processes"]:
        if process["run_dir"] is not None:
            used[Path(process["run_dir"]).name, process["attempt"]] += process["used_mib"]
    live = {(job, attempt): mib for job, attempt, mib in promise.others}
    ended = sum(mib for key, mib in used.items() if key not in live)
    unused = sum(max(0, mib - used[key]) for key, mib in live.items())
    return int(gpu["free_mib"]) + ended - unused - HEADROOM_MIB


@pytest.mark.slow
def test_forty_jobs_beside_a_thief_of_gpu_memory(tmp_path: Path) -> None:
    slots = {"extract": 2, "sfm": 2, "train": 2, "stitch": 1}
    kept = {"max_parallel": slots, "vram_headroom_mib": HEADROOM_MIB}
    with rehearsal(tmp_path, len(GPUS), pace=1.0, **kept) as farm:
        gpus = simulate(farm, GPUS)
        jobs = farm.ingest(JOBS)
        with sqlite3.connect(farm.cosma.database) as writer:
            writer.executescript(DIARY)
        with thief(7, gpus, tmp_path / "thief.log"):
            done = subprocess.run(
                farm.cosma.command("dispatch", "--once"), cwd=farm.cosma.directory,
                env={**farm.cosma.environment, "COSMA_PROBE_S": "1"}, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=1800, check=False,
            )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert Counter(job["state"] for job in farm.cosma.jobs().values()) == {"done": JOBS + 1}

        placed = promises(farm.cosma.database)
        assert {promise.job for promise in placed} >= set(jobs)
        overdrawn = [
            promise for promise in placed
            if not any(left_mib(promise, gpu) >= promise.mib for gpu in promise.told)
        ]  # fmt: skip
        assert overdrawn == []  # so no out-of-memory was one that NVML had told of

        with sqlite3.connect(farm.cosma.database) as reader:
            failed = dict(
                reader.execute("SELECT job || '#' || attempt, reason FROM attempts"
                               " WHERE state = 'failed'").fetchall()
            )  # fmt: skip
            reader.row_factory = sqlite3.Row
            stored = {row["id"]: row for row in reader.execute("SELECT * FROM jobs")}
        assert set(failed.values()) <= {TOO_LITTLE, TAKEN}
        history = [line for one in gpus for line in one.history()]
        refused = {line["who"] for line in history if not line["granted"]} - {"thief", "ambush"}
        assert set(failed) == refused  # the device said so, and nobody else
        # What others took costs a job neither its plan nor its budget.
        robbed, short = (
            {name.partition("#")[0] for name, why in failed.items() if why == one}
            for one in (TAKEN, TOO_LITTLE)
        )
        assert robbed, "the ambushes were seen"
        for job in robbed - short:
            row = stored[job]
            assert (row["shrink"], row["need_mib"]) == (0, None), (job, row)
            assert "resource" not in json.loads(row["retries"]), (job, row)
        taken = Counter(line["who"] for line in history if line["granted"] and line["mib"])
        assert taken["ambush"] == AMBUSHES and taken["thief"] > 5
        print(
            f"{len(placed)} placements, {len(failed)} out of memory, "
            f"{len(robbed)} robbed, {taken['thief']} thefts"
        )
