"""The verb `selftest`: does what the agent relies on, here, with this host's own file system."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from worker_agent import bundle, clock, processes
from worker_agent.durable import write_json
from worker_agent.epoch import state_directory
from worker_agent.version import interpreter


def selftest(work_dir: Path) -> dict[str, object]:
    """{"ok": bool, "python": version, "checks": {name: "ok" or what is wrong}}."""
    folder = Path(tempfile.mkdtemp(prefix="selftest-", dir=state_directory(work_dir)))
    checks: dict[str, Callable[[Path], str]] = {
        "durable_write": _durable_write,
        "lock_excludes": _lock_excludes,
        "lock_follows_fork": _lock_follows_fork,
        "proc_readable": _proc_readable,
        "boot_clock": _boot_clock,
        "stage_code": _stage_code,
    }
    results = {}
    try:
        for name, check in checks.items():
            try:
                results[name] = check(folder) or "ok"
            except OSError as error:
                results[name] = f"{error.filename or work_dir}: {error.strerror}"
    finally:
        shutil.rmtree(folder)
    ok = all(result == "ok" for result in results.values())
    return {"ok": ok, "python": interpreter(), "checks": results}


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
