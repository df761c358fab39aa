"""Runs one step of `sfm_mapping` as a child process and turns whatever becomes of it into words."""

from __future__ import annotations

import json
import os
import selectors
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import worker_agent
from worker_agent import oom
from worker_agent.messages import FailureCode
from worker_agent.stages.api import StageFailure
from worker_agent.stages.sfm_liveness import Bounds, Pulse, beat, bounds, hung
from worker_agent.stages.sfm_mapping import Request

__all__ = ["StepCrashed", "StepHung", "counts", "run_step"]

POLL_S = 0.5
END_S = 30.0  # what was killed may have to wait for a disk
LOG_TAIL = 8000
_MEMORY_SIGNS = (
    "bad_alloc",
    "MemoryError",
    "annot allocate memory",
    "Memory allocation still failed",  # OpenBLAS
    "SQLite error: out of memory",
)
# With an address-space limit, also what a thread's stack and a library's mapping fail with: the
# last is what the C library says when it cannot load the unwinder that ends a thread.
_LIMIT_SIGNS = (
    "Resource temporarily unavailable",
    "failed to map segment",
    "libgcc_s.so.1 must be installed",
)
# Native code that does not look at what it was given dies of it without a word.
_LIMIT_DEATHS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)
_AT_THE_LIMIT = 0.8  # of it, in use when a child died that way
# Native stack traces, information of glog ("I20261231 ..."), Python's markers, and what its fault
# handler says of itself.
_NOISE = (
    "@",
    "I20",
    "***",
    "PC:",
    "^",
    "$ ",
    "Extension modules",
    "File ",
    "Thread 0x",
    "Current thread",
)
_DISK_SIGNS = ("database or disk is full", "No space left on device")


class StepCrashed(Exception):
    """The child died; `message` is one line, and `failure` what it is for the stage."""

    code = FailureCode.STAGE_CRASHED
    what = "COLMAP ended abnormally"
    advice = "See the attempt's log; try other sfm settings, or report the clip."

    def __init__(self, step: str, message: str) -> None:
        super().__init__(message)
        self.step = step
        self.message = message

    def failure(self, evidence: dict[str, Any]) -> StageFailure:
        line = f"{self.what}: {self.message}"
        return StageFailure(self.code, line, advice=self.advice, evidence=evidence)


class StepHung(StepCrashed):
    """The child lived, got no further and was ended."""

    code = FailureCode.STAGE_TIMEOUT
    what = "SfM hung"
    advice = "Look at the host's disk and kernel log; raise sfm.patience if it is only slow."


def run_step(step: str, request: Request, tick: Callable[[int], int]) -> dict[str, Any]:
    """The step's answer; of one that an earlier attempt ended, the answer it left.

    `tick` is called about twice a second with the last count that the step printed, and says how
    much of it is done. Raises StageFailure OUT_OF_MEMORY or DISK_FULL, StepHung for a step that
    gets no further (`sfm_liveness`), and StepCrashed for any other death.
    """
    work = Path(request.work)
    work.mkdir(parents=True, exist_ok=True)
    answer = Path(request.answer)
    if answer.is_file():
        return _answered(answer)
    order = work / f"{step}.json"
    order.write_text(json.dumps(asdict(request)))
    complaints = work / f"{step}.log"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(_import_path()),
        "OMP_NUM_THREADS": str(request.threads),
        "OPENBLAS_NUM_THREADS": str(request.threads),
    }
    limits = bounds(len(request.names), request.threads, request.patience)
    kills_before = oom.kills()
    with complaints.open("wb") as log:
        # In the stage's own process group: whoever ends the stage ends this too.
        child = subprocess.Popen(
            [sys.executable, "-m", "worker_agent.stages.sfm_mapping", step, str(order)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
        )
        try:
            peak_mib, why_hung = _follow(child, tick, limits)
        finally:
            ended = _end(child)
    if why_hung is not None:
        message = f"{step} of {len(request.names)} frames was ended, {why_hung}"
        if not ended:  # then nothing else can work on its database
            raise StepHung(step, f"{message}, and does not go away").failure({"step": step})
        raise StepHung(step, message)
    if child.returncode == 0 and answer.is_file():
        return _answered(answer)
    log_text = complaints.read_text(errors="replace")
    # Where the kernel does not tell its kills, each counts as one for memory.
    for_memory = not kills_before or bool(oom.since(kills_before, oom.kills()))
    raise _verdict(step, child.returncode, log_text, request, peak_mib, for_memory=for_memory)


def _answered(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def _end(child: subprocess.Popen[bytes]) -> bool:
    """Whether it is gone: what waits in the kernel cannot be killed."""
    child.kill()  # of a process that has been waited for, nothing
    try:
        child.wait(END_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def counts(database: Path) -> tuple[int, int]:
    """(images with features, verified or rejected pairs) in a COLMAP database; zeros before."""
    if not database.is_file():
        return 0, 0
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=1)) as link:
            images = link.execute("select count(*) from keypoints").fetchone()[0]
            pairs = link.execute("select count(*) from two_view_geometries").fetchone()[0]
    except sqlite3.OperationalError:  # not laid out yet, or busy: the next poll will see it
        return 0, 0
    return int(images), int(pairs)


def _import_path() -> list[str]:
    """The child must find this package where the parent did, whatever its working directory."""
    root = str(Path(worker_agent.__file__).resolve().parent.parent)
    return [root, *filter(None, [os.environ.get("PYTHONPATH")])]


def _follow(
    child: subprocess.Popen[bytes], tick: Callable[[int], int], limits: Bounds
) -> tuple[float, str | None]:
    """Until it closes its output or hangs: the most address space it was seen with, in MiB, and
    why it counts as hung."""
    peak_mib = 0.0
    pulse, looked = Pulse(), time.monotonic()
    if child.stdout is None:
        raise RuntimeError("the child was started without a pipe")
    count = 0
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(POLL_S):
                block = os.read(child.stdout.fileno(), 65536)
                if not block:
                    return peak_mib, None
                *lines, buffer = (buffer + block).split(b"\n")
                numbers = [int(n) for n in (x[11:] for x in lines) if n.isdigit()]
                count = numbers[-1] if numbers else count
            peak_mib = max(peak_mib, _address_space_mib(child.pid))
            done, now = tick(count), time.monotonic()
            watched_s, looked = min(now - looked, 2 * POLL_S), now
            pulse = beat(pulse, cpu_s=_cpu_s(child.pid), done=done, watched_s=watched_s)
            if (why := hung(pulse, limits)) is not None:
                return peak_mib, why


def _address_space_mib(pid: int) -> float:
    """Peak so far; 0 for a process that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmPeak:")]
    return int(peaks[0]) / 1024 if peaks else 0.0


def _cpu_s(pid: int) -> float:
    """Of all its threads; 0 for a process that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # proc_pid_stat(5)


def _verdict(
    step: str,
    returncode: int,
    log: str,
    request: Request,
    peak_mib: float,
    *,
    for_memory: bool,
) -> StageFailure | StepCrashed:
    sys.stderr.write(log[-LOG_TAIL:])  # the child's own words belong into the attempt's log
    killed = -returncode if returncode < 0 else 0
    limit = request.memory_limit_mib
    signs = _MEMORY_SIGNS + (_LIMIT_SIGNS if limit else ())
    if any(sign in log for sign in _DISK_SIGNS):
        return StageFailure(
            FailureCode.DISK_FULL,
            f"no space left on the host during SfM ({step})",
            advice="Free space on the host or move its work_dir, then retry the job.",
        )
    starved = limit is not None and killed in _LIMIT_DEATHS and peak_mib > _AT_THE_LIMIT * limit
    by_kernel = killed == signal.SIGKILL and for_memory
    if by_kernel or starved or any(sign in log for sign in signs):
        bound = f"its limit of {limit} MiB" if limit else "the host's memory"
        return StageFailure(
            FailureCode.OUT_OF_MEMORY,
            f"SfM ({step}) did not fit into {bound}",
            advice="Lower sfm.max_features or sfm.threads, or use a host with more memory.",
            evidence={"memory_limit_mib": limit, "threads": request.threads},
        )
    if "ModuleNotFoundError" in log:
        return StageFailure(
            FailureCode.TOOL_MISSING,
            f"SfM ({step}) cannot start: {_gist(log)}",
            advice="Install the agent's stage dependencies on the host (cosma worker bootstrap).",
        )
    if killed == signal.SIGKILL:  # not COLMAP's doing: no reason to go on without this step
        return StageFailure(
            FailureCode.STAGE_SIGNALLED,
            f"SfM ({step}) was killed from outside (SIGKILL), not by the kernel for its memory",
            advice="Find out what ends processes on the host; a retry goes on where this stopped.",
            evidence={"step": step},
        )
    if killed:
        return StepCrashed(step, f"{step} was ended by {signal.Signals(killed).name}: {_gist(log)}")
    return StepCrashed(step, f"{step} ended with exit {returncode}: {_gist(log)}")


def _gist(log: str) -> str:
    """The one line of a crash that says why."""
    lines = [line.strip() for line in log.splitlines()]
    lines = [line for line in lines if line and not line.startswith(_NOISE)]
    native = [line for line in lines if "what():" in line or "Check failed" in line]
    return (native or lines or ["no message"])[-1][:300]
