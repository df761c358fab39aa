"""The probe's memory by process, against processes of known size on a real GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pynvml
import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.gpu.cuda_stage import GO, HOLDING, HOLDS_MIB
from tests.rehearsal import rehearsal
from worker_agent.probe import probe
from worker_agent.processes import COOKIE
from worker_agent.protocol import GpuFacts, ProbeRequest
from worker_agent.training.backend import cuda_usable
from worker_agent.vram import VramWatch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not cuda_usable(), reason="no NVIDIA GPU that torch can use"),
]

COOKIE_VALUE = "/w/reef/job-7#3"
WAIT_S = 120.0
# Holds as many MiB as each line of its input says, and says so when it does.
HOLDER = """\
import sys, torch
held = None
print(torch.cuda.get_device_properties(0).uuid, flush=True)
for line in sys.stdin:
    held = None
    torch.cuda.empty_cache()
    held = torch.ones(int(line) << 20, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    print("held", flush=True)
"""
STAGE_PYTHON = """\
#!/bin/sh
export COSMA_RUN_LOG={log}
case "$1 $2" in
"-m worker_agent.stages")
    shift 2; PYTHONPATH=$PYTHONPATH:{repository} exec {python} -m tests.gpu.cuda_stage "$@" ;;
esac
exec {python} "$@"
"""


class Holder:
    """A process of an attempt that holds as much of the first GPU as it is told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.pid = process.pid
        self._in, self._out = process.stdin, process.stdout
        self.uuid = f"GPU-{self._out.readline().strip().removeprefix('GPU-')}"

    def hold(self, mib: int) -> None:
        self._in.write(f"{mib}\n")
        self._in.flush()
        assert self._out.readline() == "held\n"


@contextmanager
def holder() -> Iterator[Holder]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        env={**os.environ, COOKIE: COOKIE_VALUE},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield Holder(process)
        finally:
            process.kill()


def seen(work: Path, uuid: str) -> GpuFacts:
    facts = probe(ProbeRequest(work_dir=str(work), stage_python=sys.executable))
    assert facts.gpu_error == ""
    return next(gpu for gpu in facts.gpus if gpu.uuid == uuid)


def by_nvidias_binding(uuid: str, pid: int) -> float:
    """MiB, by a second way to the same driver."""
    pynvml.nvmlInit()
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        rows = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)
        return next(row.usedGpuMemory for row in rows if row.pid == pid) / (1 << 20)
    finally:
        pynvml.nvmlShutdown()


def wait_until(what: str, true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline, f"not within {WAIT_S:.0f} s: {what}"
        time.sleep(0.05)


def test_memory_of_a_process_of_known_size(tmp_path: Path) -> None:
    with holder() as process:
        process.hold(256)
        small = seen(tmp_path, process.uuid)
        process.hold(1_280)
        large = seen(tmp_path, process.uuid)
        used = [
            next(p.used_mib for p in facts.processes if p.pid == process.pid)
            for facts in (small, large)
        ]
        assert used[0] is not None and used[1] is not None
        assert used[0] >= 256
        # The allocator takes blocks of 2 MiB; the context has its size before the first of them.
        assert abs(used[1] - used[0] - 1_024) <= 2
        assert abs(used[1] - by_nvidias_binding(process.uuid, process.pid)) <= 1
        own = next(p for p in large.processes if p.pid == process.pid)
        assert (own.run_dir, own.attempt) == ("/w/reef/job-7", 3)
        assert large.total_mib - large.free_mib >= large.reserved_mib + used[1]


def test_the_peak_of_an_attempt_is_seen_while_it_lasts(tmp_path: Path) -> None:
    with holder() as process:
        process.hold(64)
        (facts,) = [p for p in seen(tmp_path, process.uuid).processes if p.pid == process.pid]
        assert facts.used_mib is not None
        context = facts.used_mib - 64
        watch = VramWatch(process.uuid, COOKIE_VALUE)
        assert watch._watcher is not None
        watcher = watch._watcher
        process.hold(1_536)
        wait_until("the peak was seen", lambda: len(watcher.said().splitlines()) > 0
                   and int(watcher.said().splitlines()[-1]) >= 1_536)  # fmt: skip
        process.hold(64)
        peak = watch.finish()
    assert peak is not None and abs(peak - context - 1_536) <= 4


def test_two_jobs_share_one_gpu(tmp_path: Path) -> None:
    with holder() as process:
        uuid = process.uuid
    slots = {"extract": 2, "sfm": 2, "train": 2, "stitch": 1}
    with rehearsal(tmp_path, 1, max_parallel=slots, gpus=[uuid]) as farm:
        script = tmp_path / "cuda-stage-python"
        script.write_text(
            STAGE_PYTHON.format(log=farm.log, python=sys.executable, repository=REPOSITORY)
        )
        script.chmod(0o755)
        inventory = yaml.safe_load(farm.hosts.inventory.read_text())
        inventory["defaults"]["stage_python"] = str(script)
        farm.hosts.inventory.write_text(yaml.safe_dump(inventory, sort_keys=False))
        beside = farm.hosts.hosts[0].work_dir.parent
        jobs = farm.ingest(2)
        dispatcher = farm.cosma.start("dispatch", "--once")
        wait_until(
            "both hold memory",
            lambda: (
                {path.name.removeprefix(HOLDING) for path in beside.glob(f"{HOLDING}*")}
                == set(jobs)
            ),
        )
        (host,) = farm.cosma.json("worker", "probe")
        (device,) = host["devices"]
        (beside / GO).touch()
        assert dispatcher.wait(600) == 0
        assert {job["state"] for job in farm.cosma.jobs().values()} == {"done"}
    own = {row["job"]: row["mib"] for row in device["own"]}
    assert set(own) == set(jobs) and device["uuid"] == uuid
    assert all(HOLDS_MIB <= mib < HOLDS_MIB + 1_500 for mib in own.values())  # and a context each
    assert device["own_mib"] == sum(own.values())
    in_use = device["total_mib"] - device["free_mib"]
    assert device["foreign_mib"] == max(0, in_use - device["own_mib"])
