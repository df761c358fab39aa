"""The verb `selftest`: does what the agent relies on, here, with this host's own file system, and
what the stages rely on, with answers that are known."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from worker_agent import bundle, clock, processes
from worker_agent.durable import write_json
from worker_agent.epoch import state_directory
from worker_agent.interpreter import choose
from worker_agent.protocol import SelftestCheck, SelftestReport, SelftestRequest
from worker_agent.version import interpreter

# Seconds; the first training step of a host compiles its kernels.
_STAGE_CHECKS = {"decode": 20.0, "sift": 60.0, "train": 200.0}


def selftest(request: SelftestRequest) -> SelftestReport:
    """The agent's own checks and, when asked for, those of the stages with known answers.

    Raises OSError when the work directory cannot be used at all.
    """
    work_dir = Path(request.work_dir)
    folder = Path(tempfile.mkdtemp(prefix="selftest-", dir=state_directory(work_dir)))
    checks: dict[str, Callable[[Path], str]] = {
        "durable_write": _durable_write,
        "lock_excludes": _lock_excludes,
        "lock_follows_fork": _lock_follows_fork,
        "proc_readable": _proc_readable,
        "boot_clock": _boot_clock,
        "stage_code": _stage_code,
    }
    try:
        done = [_timed(name, check, folder) for name, check in checks.items()]
        if request.stages:
            stages = _StageChecks(request)
            for name, limit_s in _STAGE_CHECKS.items():
                done.append(_timed(name, stages.check(name, limit_s), folder))
    finally:
        shutil.rmtree(folder)
    return SelftestReport(
        ok=all(item.ok for item in done), python=interpreter(), checks=tuple(done)
    )


def _timed(name: str, check: Callable[[Path], str], folder: Path) -> SelftestCheck:
    began = time.monotonic()
    try:
        message = check(folder)
    except OSError as error:
        message = f"{error.filename or folder}: {error.strerror}"
    seconds = round(time.monotonic() - began, 3)
    return SelftestCheck(name=name, ok=not message, seconds=seconds, message=message)


class _StageChecks:
    """Runs checks of worker_agent.stages.selftest with the interpreter of the stages."""

    def __init__(self, request: SelftestRequest) -> None:
        self._python = choose(request.stage_python, Path(request.work_dir))
        gpu = request.gpu or ""
        cuda = request.gpu_kind == "cuda" and not gpu.startswith("CPU-")
        if cuda and not gpu:
            gpu = "0"
        self._environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": gpu if cuda else "",
            "PYTHONPATH": str(bundle.code_directory()),
            "PYTHONSAFEPATH": "1",
        }

    def check(self, name: str, limit_s: float) -> Callable[[Path], str]:
        return lambda folder: self._run(name, limit_s, folder)

    def _run(self, name: str, limit_s: float, folder: Path) -> str:
        output = folder / f"{name}.out"
        with output.open("wb") as sink:
            # Files and not pipes, and no wait for ever after the kill: a GPU that hangs keeps its
            # process where not even SIGKILL ends it.
            child = subprocess.Popen(
                [self._python, "-m", "worker_agent.stages.selftest", name],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=self._environment,
                start_new_session=True,
            )
            try:
                returncode = child.wait(limit_s)
            except subprocess.TimeoutExpired:
                return f"no answer within {limit_s:g} s"
            finally:
                if child.returncode is None:
                    processes.kill_group(child.pid, signal.SIGKILL)
        lines = output.read_text(errors="replace").strip().splitlines() or ["no output"]
        try:
            if returncode == 0:
                return str(json.loads(lines[-1])["message"])
        except (ValueError, KeyError, TypeError):
            pass  # below: it is no answer
        return f"{self._python} ended with exit code {returncode}: {lines[-1][:300]}"


def _durable_write(folder: Path) -> str:
    write_json(folder / "value.json", 1)
    return "" if (folder / "value.json").read_text() == "1" else "a file came back different"


def _try_lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _lock_excludes(folder: Path) -> str:
    first = _try_lock(folder / "lock")
    second = _try_lock(folder / "lock")
    for descriptor in (first, second):
        if descriptor is not None:
            os.close(descriptor)
    excluded = first is not None and second is None
    return "" if excluded else "flock does not exclude: put work_dir on a local file system"


def _lock_follows_fork(folder: Path) -> str:
    held = _try_lock(folder / "fork")
    if held is None:
        return "a fresh lock could not be taken"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    os.close(held)
    second = _try_lock(folder / "fork")
    os.close(writer)
    os.waitpid(child, 0)
    if second is not None:
        os.close(second)
        return "a forked process does not keep the lock: put work_dir on a local file system"
    return ""


def _proc_readable(_: Path) -> str:
    mine = processes.stat_of(os.getpid())
    if mine is None or not processes.is_alive(os.getpid(), mine.start_ticks):
        return "/proc does not show this process: mount it"
    return ""


def _boot_clock(_: Path) -> str:
    first = clock.boottime()
    return "" if clock.boottime() >= first and clock.boot_id() else "the boot clock runs backwards"


def _stage_code(_: Path) -> str:
    runner = bundle.code_directory() / "worker_agent" / "stages" / "__main__.py"
    return "" if runner.is_file() else f"{runner} is missing: push the agent again"
