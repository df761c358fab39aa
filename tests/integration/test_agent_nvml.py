"""NVML's C interface, against a driver library compiled for the test (tests/simulated_gpu)."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml
import pytest

from dispatcher.fleet_view import gpu_view
from tests.simulated_gpu.driver import SimulatedGpus
from worker_agent import driver_query, gpus, nvml
from worker_agent.probe import probe
from worker_agent.processes import COOKIE
from worker_agent.protocol import HostFacts, ProbeRequest
from worker_agent.vram import VramWatch

COOKIE_VALUE = "/w/reef/job-7#3"
ONE = "gpu GPU-a 24576 300 ok"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimulatedGpus:
    """One GPU, and no nvidia-smi."""
    built = SimulatedGpus(tmp_path / "driver").build(ONE)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(nvml.LIBRARY_VARIABLE, str(built.library))
    return built


@pytest.fixture
def user_of_gpu() -> Iterator[Callable[..., int]]:
    """Starts a process that does nothing; one of an attempt's when asked."""
    started = []

    def start(*, ours: bool) -> int:
        environment = {**os.environ, COOKIE: COOKIE_VALUE} if ours else None
        code = "print(1, flush=True); input()"
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", code],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        started.append(process)
        return process.pid

    yield start
    for process in started:
        process.communicate()


def facts(tmp_path: Path) -> HostFacts:
    return probe(ProbeRequest(work_dir=str(tmp_path / "work"), stage_python=sys.executable))


@pytest.mark.parametrize(
    ("own", "theirs"),
    [
        (nvml.Memory, pynvml.c_nvmlMemory_t),
        (nvml.MemoryV2, pynvml.c_nvmlMemory_v2_t),
        (nvml.Process, pynvml.c_nvmlProcessInfo_v3_t),
        (nvml.Utilization, pynvml.c_nvmlProcessUtilizationSample_t),
        (nvml.Attributes, pynvml.c_nvmlDeviceAttributes),
    ],
)
def test_structures_are_those_of_nvidias_own_binding(
    own: type[ctypes.Structure], theirs: type[ctypes.Structure]
) -> None:
    def layout(kind: type[ctypes.Structure]) -> list[tuple[int, int]]:
        fields = [getattr(kind, name) for name, *_ in kind._fields_]
        return [(field.offset, field.size) for field in fields]

    assert layout(own) == layout(theirs)
    assert ctypes.sizeof(own) == ctypes.sizeof(theirs)


def test_constants_are_those_of_nvidias_own_binding() -> None:
    assert ctypes.sizeof(nvml.MemoryV2) | 2 << 24 == pynvml.nvmlMemory_v2
    assert (nvml.NOT_SUPPORTED, nvml.NO_PERMISSION, nvml.NOT_FOUND) == (
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_NOT_FOUND,
    )
    assert (nvml.INSUFFICIENT_SIZE, nvml.DRIVER_NOT_LOADED, nvml.OTHER_VERSION) == (
        pynvml.NVML_ERROR_INSUFFICIENT_SIZE,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    )


def test_memory_by_process_whose_it_is_and_who_decodes(
    tmp_path: Path, driver: SimulatedGpus, user_of_gpu: Callable[..., int]
) -> None:
    ours, other, hidden = (user_of_gpu(ours=ours) for ours in (True, False, False))
    driver.write(
        [
            ONE,
            f"use GPU-a {ours} 6000 C",
            f"use GPU-a {other} 2000 B",  # on two lists, and held once
            f"use GPU-a {hidden} -500 G",
            f"decode GPU-a {other} 40",
            "encode GPU-a 2",
        ]
    )
    found = facts(tmp_path)
    (gpu,) = found.gpus
    assert found.gpu_error == "" and found.stage_missing is not None
    assert (gpu.uuid, gpu.kind, gpu.total_mib) == ("GPU-a", "cuda", 24576)
    assert (gpu.reserved_mib, gpu.free_mib) == (300, 24576 - 300 - 8500)
    assert (gpu.decoder_percent, gpu.encoder_sessions, gpu.has_decoder) == (40, 2, True)
    by_pid = {process.pid: process for process in gpu.processes}
    assert {pid: p.used_mib for pid, p in by_pid.items()} == {
        ours: 6000,
        other: 2000,
        hidden: None,
    }
    assert (by_pid[ours].run_dir, by_pid[ours].attempt) == ("/w/reef/job-7", 3)
    assert by_pid[other].run_dir is None and by_pid[other].decodes
    assert by_pid[other].name.startswith("python") and by_pid[other].user


def test_where_the_driver_lists_no_process_our_own_are_known_all_the_same(
    tmp_path: Path, driver: SimulatedGpus, monkeypatch: pytest.MonkeyPatch,
    user_of_gpu: Callable[..., int],
) -> None:  # fmt: skip
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a")
    ours = user_of_gpu(ours=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
    user_of_gpu(ours=True)
    assert facts(tmp_path).gpus[0].processes == ()  # it holds nothing yet
    driver.write([ONE, f"use GPU-a {ours} 3000 H"])
    (process,) = facts(tmp_path).gpus[0].processes
    assert (process.pid, process.used_mib, process.attempt) == (ours, None, 3)
    view = gpu_view(facts(tmp_path).gpus[0])
    assert (view.own_mib, view.foreign_mib) == ({("job-7", 3): 3000}, 300)


def test_mig_instances_are_gpus_of_their_own(
    tmp_path: Path, driver: SimulatedGpus, user_of_gpu: Callable[..., int]
) -> None:
    pid = user_of_gpu(ours=False)
    driver.write(
        [
            "gpu GPU-m 81920 500 mig",
            "mig GPU-m MIG-1 9728 0",
            "mig GPU-m MIG-2 40192 2",
            f"use MIG-2 {pid} 1000 C",
            "gpu GPU-n 40960 400 mig",
        ]
    )
    found = facts(tmp_path)
    assert [(gpu.uuid, gpu.parent, gpu.total_mib) for gpu in found.gpus] == [
        ("MIG-1", "GPU-m", 9728),
        ("MIG-2", "GPU-m", 40192),
    ]
    assert [gpu.has_decoder for gpu in found.gpus] == [False, True]
    assert [p.used_mib for p in found.gpus[1].processes] == [1000]
    assert "GPU 1: GPU-n is in MIG mode and has no instance" in found.gpu_error


def test_one_gpu_that_hangs_or_is_lost_costs_only_its_own_figures(
    tmp_path: Path, driver: SimulatedGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "PATIENCE_S", 1.0)
    driver.write(
        [
            "gpu GPU-a 1000 0 ok",
            "gpu GPU-b 1000 0 hang",
            "gpu GPU-c 1000 0 lost",
            "gpu GPU-d 1000 0 ok",
        ]
    )
    found = facts(tmp_path)
    assert [gpu.uuid for gpu in found.gpus] == ["GPU-a", "GPU-d"]
    assert "GPU 1: did not answer within 1 s" in found.gpu_error
    assert "GPU 2: GPU is lost (nvmlDeviceGetHandleByIndex_v2)" in found.gpu_error


def test_a_driver_that_hangs_is_bounded_and_no_cpu_trainer(
    tmp_path: Path, driver: SimulatedGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "PATIENCE_S", 1.0)
    driver.ledger.with_name("ledger.hang").touch()
    found = facts(tmp_path)
    assert found.gpus == () and "did not answer within 1 s" in found.gpu_error


def test_a_question_that_cannot_be_ended_is_not_put_again(
    tmp_path: Path, driver: SimulatedGpus, user_of_gpu: Callable[..., int]
) -> None:
    driver.write([ONE, "gpu GPU-b 1000 0 ok"])
    state = tmp_path / "state"
    state.mkdir()
    stuck = gpus._Stuck(state / "driver_stuck.json")
    pid = user_of_gpu(ours=False)  # stands for a child in a call that never returns
    stuck.note({0: pid})
    reading = gpus.read(state)
    assert [gpu.uuid for gpu in reading.gpus] == ["GPU-b"]
    assert reading.error == f"GPU 0: hangs in process {pid}"
    stuck.note({None: pid})
    assert f"the driver hangs in process {pid}" in gpus.read(state).error
    other = gpus._Stuck(tmp_path / "elsewhere" / "driver_stuck.json")
    assert other.alive() == {}


def test_the_library_without_a_driver_is_a_host_without_a_gpu(
    tmp_path: Path, driver: SimulatedGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.ledger.with_name("ledger.unloaded").touch()
    assert [gpu.kind for gpu in facts(tmp_path).gpus] == ["cpu"]


def test_the_peak_of_an_attempt_is_watched_and_never_anothers(
    driver: SimulatedGpus, user_of_gpu: Callable[..., int]
) -> None:
    first, second = user_of_gpu(ours=True), user_of_gpu(ours=True)
    other = user_of_gpu(ours=False)
    watch = VramWatch("GPU-a", COOKIE_VALUE)
    lines = [f"use GPU-a {first} 1500 C", f"use GPU-a {other} 9000 C"]
    expected = [
        ("2500", [*lines, f"use GPU-a {second} 1000 C"]),
        ("4500", [lines[1], f"use GPU-a {second} 4500 C"]),
    ]
    assert watch._watcher is not None
    for said, held in expected:
        driver.write([ONE, *held])
        deadline = time.monotonic() + 60
        while said not in watch._watcher.said() and time.monotonic() < deadline:
            time.sleep(0.02)
    driver.write([ONE, *lines])
    watch.tick(1.0)
    assert watch.finish() == 4500.0
    assert watch._watcher.ended()


def test_without_nvml_the_peak_is_asked_of_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_of_gpu: Callable[..., int]
) -> None:
    pid = user_of_gpu(ours=True)
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho 'GPU-a, {pid}, 700'\necho 'GPU-b, {pid}, 900'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv(nvml.LIBRARY_VARIABLE, str(tmp_path / "absent"))
    watch = VramWatch("GPU-a", COOKIE_VALUE)
    now = 0.0
    deadline = time.monotonic() + 60
    while watch._smi._peak_mib is None and time.monotonic() < deadline:
        watch.tick(now)
        time.sleep(0.02)
        now += 0.02
    assert watch.finish() == 700.0


def test_children_that_say_much_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    much, silent, failing = driver_query.ask(
        [
            ["sh", "-c", "head -c 300000 /dev/zero | tr '\\0' '\\n'; echo end"],
            ["sh", "-c", "echo begun; exec sleep 600"],
            ["sh", "-c", "echo no; exit 3"],
        ],
        patience_s=2.0,
    )
    assert much.lines[-1] == "end" and len(much.lines) == 300_001 and much.returncode == 0
    assert silent.hung and silent.lines == ["begun"] and silent.stuck is None
    assert (failing.lines, failing.returncode) == (["no"], 3)
