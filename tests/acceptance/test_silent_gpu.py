"""A GPU whose driver hangs in it: the host's other GPU and its CPU stages go on without it."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path

from dispatcher.errors import ExitCode
from tests.acceptance.cosma import EVENT_WAIT_S
from tests.rehearsal import rehearsal
from tests.simulated_gpu.farm import simulate

GOOD = "gpu GPU-good 12288 200 ok"
JOBS = 3


def test_a_gpu_that_hangs_costs_only_itself(tmp_path: Path) -> None:
    with rehearsal(tmp_path, 1) as farm:
        (gpus,) = simulate(farm, {"host-1": ["gpu GPU-hung 24576 300 hang", GOOD]})
        farm.ingest(JOBS)
        (host,) = farm.cosma.json("worker", "probe")
        assert [device["uuid"] for device in host["devices"]] == ["GPU-good"]
        assert host["state"] == "reachable" and "GPU 0: did not answer" in host["reason"]
        done = farm.cosma.run("dispatch", "--once")
        assert done.returncode == 0, done.stderr
        assert Counter(job["state"] for job in farm.cosma.jobs().values()) == {"done": JOBS + 1}
        assert {line["uuid"] for line in gpus.history()} == {"GPU-good"}


def test_cpu_stages_go_on_where_the_driver_is_gone(tmp_path: Path) -> None:
    with rehearsal(tmp_path, 1) as farm:
        (gpus,) = simulate(farm, {"host-1": [GOOD]})
        (job,) = farm.ingest(1)
        farm.hold(True)  # in its first stage, on the host it will stay on
        dispatcher = farm.cosma.start("dispatch", "--once")
        farm.cosma.wait_until("it runs", lambda db: _stages(db, "running") == {"Validation"})
        gpus.write([GOOD.replace("ok", "lost")])
        farm.cosma.wait_until("a probe has said so", _gpu_lost)
        farm.hold(False)
        farm.cosma.wait_until(
            "it waits for a GPU", lambda db: "ColmapReconstruction" in _stages(db, "succeeded")
            and "GPU is lost" in _why(db, job),
        )  # fmt: skip
        assert (job, "Training") not in farm.runs()
        gpus.write([GOOD])
        assert dispatcher.wait(EVENT_WAIT_S) == ExitCode.OK
        assert farm.cosma.jobs()[job]["state"] == "done"


def _stages(reader: sqlite3.Connection, state: str) -> set[str]:
    rows = reader.execute("SELECT stage FROM attempts WHERE state = ?", (state,))
    return {stage for (stage,) in rows}


def _gpu_lost(reader: sqlite3.Connection) -> bool:
    rows = reader.execute("SELECT facts ->> 'gpu_error' FROM hosts")
    return any("GPU is lost" in (error or "") for (error,) in rows)


def _why(reader: sqlite3.Connection, job: str) -> str:
    row = reader.execute("SELECT message FROM waiting WHERE job = ?", (job,)).fetchone()
    return "" if row is None else str(row[0])
