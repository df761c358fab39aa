"""`nvidia-smi`, where the management library cannot be asked: its answers, parsed."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

from worker_agent import driver_query

PROGRAM = "nvidia-smi"
TIMEOUT_S = 5.0

GPU_QUERY = ("--query-gpu=uuid,name,memory.total,memory.free", "--format=csv,noheader,nounits")
COMPUTE_QUERY = (
    "--query-compute-apps=gpu_uuid,pid,used_memory",
    "--format=csv,noheader,nounits",
)


class SmiError(Exception):
    """The driver is there and does not answer properly; the text says how."""

    def __init__(self, text: str, stuck: int | None = None) -> None:
        super().__init__(text)
        self.stuck = stuck  # pid of an nvidia-smi that cannot be ended


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
    used_mib: int | None  # None: the driver does not tell


def is_installed() -> bool:
    return shutil.which(PROGRAM) is not None


def query_gpus() -> tuple[GpuRow, ...]:
    """All GPUs. Raises SmiError when the driver hangs, fails or answers nonsense."""
    rows = []
    for line in ask(GPU_QUERY).splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) < 4:
            continue
        try:
            total, free = int(fields[-2]), int(fields[-1])
        except ValueError:
            raise SmiError(f"{PROGRAM} reports no memory figures: {line.strip()}") from None
        rows.append(GpuRow(fields[0], ",".join(fields[1:-2]), total, free))
    if not rows:
        raise SmiError(f"{PROGRAM} lists no GPU")
    return tuple(rows)


def query_compute() -> tuple[ComputeRow, ...]:
    """Compute processes of all GPUs. Raises SmiError."""
    return parse_compute(ask(COMPUTE_QUERY))


def parse_compute(text: str) -> tuple[ComputeRow, ...]:
    """Rows of COMPUTE_QUERY; memory the driver does not tell is "[N/A]"."""
    rows = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 3 and fields[1].isdigit():
            used = int(fields[2]) if fields[2].isdigit() else None
            rows.append(ComputeRow(fields[0], int(fields[1]), used))
    return tuple(rows)


def start(query: tuple[str, ...]) -> driver_query.Child:
    """Asked, and not waited for. Raises OSError."""
    return driver_query.Child([PROGRAM, *query])


def ask(query: tuple[str, ...]) -> str:
    """The answer of nvidia-smi. Raises SmiError."""
    commands = [[PROGRAM, *query]]
    (answer,) = driver_query.ask(commands, patience_s=TIMEOUT_S, stderr=subprocess.STDOUT)
    text = "\n".join(answer.lines)
    if answer.hung:
        raise SmiError(f"{PROGRAM} did not answer within {TIMEOUT_S:g} s", answer.stuck)
    if answer.returncode != 0:
        reason = " ".join(text.split()) or "no output"
        raise SmiError(f"{PROGRAM} failed with exit code {answer.returncode}: {reason}")
    return text
