"""NVIDIA GPUs as `nvidia-smi` reports them: no library, so that a bare host can be asked."""

from __future__ import annotations

import ctypes
import shutil
import signal
import subprocess
from dataclasses import dataclass

PROGRAM = "nvidia-smi"
TIMEOUT_S = 5.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class GpuQueryError(Exception):
    """The driver is there and does not answer properly; the text says how."""


@dataclass(frozen=True, slots=True)
class GpuRow:
    uuid: str
    name: str
    total_mib: int
    free_mib: int


@dataclass(frozen=True, slots=True)
class ComputeRow:
    gpu: str
    pid: int
    used_mib: int


GPU_QUERY = ("--query-gpu=uuid,name,memory.total,memory.free", "--format=csv,noheader,nounits")
COMPUTE_QUERY = (
    "--query-compute-apps=gpu_uuid,pid,used_memory",
    "--format=csv,noheader,nounits",
)


def is_installed() -> bool:
    return shutil.which(PROGRAM) is not None


def query_gpus() -> tuple[GpuRow, ...]:
    """All GPUs. Raises GpuQueryError when the driver hangs, fails or answers nonsense."""
    rows = []
    for line in ask(GPU_QUERY).splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) < 4:
            continue
        try:
            total, free = int(fields[-2]), int(fields[-1])
        except ValueError:
            raise GpuQueryError(f"{PROGRAM} reports no memory figures: {line.strip()}") from None
        rows.append(GpuRow(fields[0], ",".join(fields[1:-2]), total, free))
    if not rows:
        raise GpuQueryError(f"{PROGRAM} lists no GPU")
    return tuple(rows)


def query_compute() -> tuple[ComputeRow, ...]:
    """Compute processes of all GPUs. Raises GpuQueryError."""
    return parse_compute(ask(COMPUTE_QUERY))


def parse_compute(text: str) -> tuple[ComputeRow, ...]:
    """Rows of COMPUTE_QUERY; memory the driver does not tell ("[N/A]") counts as 0."""
    rows = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 3 and fields[1].isdigit():
            used = int(fields[2]) if fields[2].isdigit() else 0
            rows.append(ComputeRow(fields[0], int(fields[1]), used))
    return tuple(rows)


def start(query: tuple[str, ...], *, stderr: int) -> subprocess.Popen[str]:
    """nvidia-smi, which the kernel ends with the process that asks: a hung one would outlive it."""
    prctl = ctypes.CDLL(None).prctl  # looked up here: nothing is loaded between fork and exec
    return subprocess.Popen(
        [PROGRAM, *query],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )


def ask(query: tuple[str, ...]) -> str:
    """The answer of nvidia-smi. Raises GpuQueryError."""
    # Popen and not run(): a hung driver leaves a process that not even SIGKILL ends, and run()
    # would wait for it for ever.
    process = start(query, stderr=subprocess.STDOUT)
    try:
        text, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise GpuQueryError(f"{PROGRAM} did not answer within {TIMEOUT_S:g} s") from None
    if process.returncode != 0:
        reason = " ".join(text.split()) or "no output"
        raise GpuQueryError(f"{PROGRAM} failed with exit code {process.returncode}: {reason}")
    return text
