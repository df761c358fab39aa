"""The GPU part of the probe, against programs that stand where nvidia-smi does."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from worker_agent import nvidia_smi, nvml
from worker_agent.probe import probe
from worker_agent.protocol import HostFacts, ProbeRequest

LISTS_TWO = """\
case "$1" in
--query-gpu=*) echo "GPU-aaaa, NVIDIA GeForce RTX 3090, 24576, 20000"
               echo "GPU-bbbb, NVIDIA GeForce RTX 3060, 12288, 12000" ;;
*) echo "GPU-aaaa, {pid}, 4000"; echo "GPU-aaaa, 1, [N/A]" ;;
esac
"""


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with a shell and nothing else, and no driver library."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("sh", "sleep"):
        (programs / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv(nvml.LIBRARY_VARIABLE, str(tmp_path / "no-driver"))
    return programs


def put(bare: Path, body: str) -> None:
    program = bare / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)


def facts(tmp_path: Path) -> HostFacts:
    return probe(ProbeRequest(work_dir=str(tmp_path / "work"), stage_python=sys.executable))


def test_host_without_nvidia_is_one_cpu_device(bare: Path, tmp_path: Path) -> None:
    found = facts(tmp_path)
    assert found.gpu_error == ""
    assert [device.kind for device in found.gpus] == ["cpu"]
    device = found.gpus[0]
    assert device.uuid.startswith("CPU-")
    assert device.total_mib == found.ram_total_mib > 0
    assert {"ffmpeg", "ffprobe"} <= set(found.stage_missing)


def test_gpus_and_their_processes(bare: Path, tmp_path: Path) -> None:
    put(bare, LISTS_TWO.format(pid=os.getpid()))
    found = facts(tmp_path)
    assert found.gpu_error == ""
    first, second = found.gpus
    assert (first.uuid, first.name) == ("GPU-aaaa", "NVIDIA GeForce RTX 3090")
    assert (first.kind, first.total_mib, first.free_mib) == ("cuda", 24576, 20000)
    assert [(p.pid, p.used_mib, p.attempt) for p in first.processes] == [
        (os.getpid(), 4000, None),
        (1, None, None),
    ]
    assert second.processes == ()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("echo 'Driver/library version mismatch'; exit 18", "exit code 18: Driver/library"),
        ("echo 'GPU-a, Orin, [N/A], [N/A]'", "no memory figures"),
        ("true", "lists no GPU"),
        ("exec sleep 60", "did not answer"),
    ],
)
def test_driver_that_fails_is_an_error_and_not_a_cpu(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, says: str
) -> None:
    monkeypatch.setattr(nvidia_smi, "TIMEOUT_S", 0.3)
    put(bare, body)
    found = facts(tmp_path)
    assert found.gpus == ()
    assert says in found.gpu_error


def test_absent_interpreter_is_what_is_missing(bare: Path, tmp_path: Path) -> None:
    request = ProbeRequest(work_dir=str(tmp_path / "work"), stage_python="/absent/python")
    assert probe(request).stage_missing[0] == "/absent/python"


def test_what_was_missing_is_asked_again(tmp_path: Path, bare: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho '[\"torch\"]'\n")
    python.chmod(0o755)
    request = ProbeRequest(work_dir=str(tmp_path / "work"), stage_python=str(python))
    assert probe(request).stage_missing == ("torch", "ffmpeg", "ffprobe")
    python.write_text("#!/bin/sh\necho '[]'\n")
    assert probe(request).stage_missing == ("ffmpeg", "ffprobe")


def test_a_hung_driver_query_ends_with_the_agent_that_asked(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    code = (
        "from worker_agent import nvidia_smi\nprint(nvidia_smi.start(()).pid, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as agent:
        assert agent.stdout is not None
        query = os.pidfd_open(int(agent.stdout.readline()))
        agent.kill()
    try:
        ended, _, _ = select.select([query], [], [], 10.0)
        assert ended, "nvidia-smi outlived the agent"
    finally:
        os.close(query)
