"""Processes as /proc shows them: whose attempt they belong to, and how to end all of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

# In the environment of every process of an attempt, and of the stage: whose child it should be.
COOKIE = "COSMA_ATTEMPT"
SUPERVISOR = "COSMA_SUPERVISOR"

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """Fields of /proc/<pid>/stat: see proc_pid_stat(5)."""

    state: str
    parent: int
    start_ticks: int
    rss_pages: int


def pids() -> Iterator[int]:
    for name in os.listdir(_PROC):  # noqa: PTH208 - runs often; no Path per entry
        if name.isdigit():
            yield int(name)


def _read(pid: int, name: str) -> bytes | None:
    """A file of /proc/<pid>, without a Path for each: every start and end of an attempt reads one
    of every process. None once the process is gone, and when it is somebody else's."""
    try:
        descriptor = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    found = b""
    try:
        while block := os.read(descriptor, 1 << 16):
            found += block
    except (ProcessLookupError, PermissionError):
        return None
    finally:
        os.close(descriptor)
    return found


def stat_of(pid: int) -> ProcessStat | None:
    """None once the process is gone."""
    content = _read(pid, "stat")
    if not content:
        return None
    text = content.decode(errors="replace")
    fields = text[text.rindex(")") + 2 :].split()
    return ProcessStat(fields[0], int(fields[1]), int(fields[19]), int(fields[21]))


def cookie_of(pid: int) -> str | None:
    """The value of COSMA_ATTEMPT a process was started with, if it was."""
    return _environment(pid, COOKIE)


def _environment(pid: int, name: str) -> str | None:
    prefix = f"{name}=".encode()
    block = _read(pid, "environ")
    if block is None or prefix not in block:
        return None
    for entry in block.split(b"\0"):
        if entry.startswith(prefix):
            return os.fsdecode(entry[len(prefix) :])
    return None


def given_gpu(uuid: str) -> dict[str, int]:
    """Attempts that were given this GPU: cookie -> one process of each."""
    found: dict[str, int] = {}
    for pid in sorted(pids()):
        cookie = cookie_of(pid)
        if cookie is not None and _environment(pid, "CUDA_VISIBLE_DEVICES") == uuid:
            found.setdefault(cookie, pid)
    return found


def parse_cookie(value: str) -> tuple[str, int] | None:
    """(run_dir, attempt) of a COSMA_ATTEMPT value."""
    run_dir, _, number = value.rpartition("#")
    return (run_dir, int(number)) if run_dir and number.isdigit() else None


def attempt_of(pid: int) -> tuple[str, int] | None:
    """(run_dir, attempt) a process belongs to; None when it is not one of cosma's."""
    value = cookie_of(pid)
    return None if value is None else parse_cookie(value)


def program_of(pid: int) -> str:
    """The program's name without its arguments, which may be secret; "" when not to be known."""
    for name in ("cmdline", "comm"):
        text = _read(pid, name) or b""
        if word := os.fsdecode(text.partition(b"\0")[0]).strip():
            return word.rpartition("/")[2]
    return ""


def user_of(pid: int) -> str:
    """Who runs it: by /etc/passwd, as a directory service may hang; else the number."""
    try:
        uid = (_PROC / str(pid)).stat().st_uid
        lines = Path("/etc/passwd").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    rows = (line.split(":") for line in lines)
    return next((row[0] for row in rows if row[2:3] == [str(uid)]), str(uid))


def is_alive(pid: int, start_ticks: int) -> bool:
    """A pid is a name that gets reused; with its start time it is an identity."""
    stat = stat_of(pid)
    return stat is not None and stat.start_ticks == start_ticks and stat.state not in "ZX"


def log_of(pid: int) -> str | None:
    """The file a process writes its output to, when it is an attempt's log by its name."""
    for descriptor in ("1", "2"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{descriptor}")  # noqa: PTH115 - runs often
        except OSError:
            continue  # gone, closed, or somebody else's process
        if target.endswith("/log"):
            return target
    return None


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose processes are meant: those of one attempt, or of all attempts of a run directory."""

    run_dir: Path
    attempt: int | None = None

    def members(self, *, but: Collection[int] = ()) -> list[int]:
        """Live processes that carry the cookie, or write to the attempt's log, except `but`.

        The log finds what emptied its environment: few programs also change their output.
        """
        real = os.path.realpath(self.run_dir)
        found = []
        for pid in pids():
            if pid in but or not (self._by_cookie(pid) or self._by_log(pid, real)):
                continue
            stat = stat_of(pid)
            if stat is not None and stat.state not in "ZX":
                found.append(pid)
        return found

    def _by_cookie(self, pid: int) -> bool:
        owner = attempt_of(pid)
        if owner is None or owner[0] != str(self.run_dir):
            return False
        return self.attempt is None or owner[1] == self.attempt

    def _by_log(self, pid: int, real: str) -> bool:
        log = log_of(pid)
        if log is None:
            return False
        if self.attempt is not None:
            return log == f"{real}/attempts/{self.attempt}/log"
        return log.startswith(f"{real}/attempts/")


def children() -> list[int]:
    """Live children of this process: with PR_SET_CHILD_SUBREAPER also what daemonised below it."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return []  # as is usual: nothing to look for
    mine, found = os.getpid(), []
    for pid in pids():
        stat = stat_of(pid)
        if stat is not None and stat.parent == mine and stat.state not in "ZX":
            found.append(pid)
    return found


def tree(root: int) -> list[int]:
    """`root` and what lives below it, found from above, so that it costs nothing how much else
    runs. A kernel built without CONFIG_PROC_CHILDREN shows `root` alone."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        try:
            threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - runs often
        except OSError:
            continue  # gone
        found.append(pid)
        for thread in threads:
            try:
                waiting += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
            except OSError:
                continue
    return found


def close_all_but(*kept: int) -> None:
    """Close every other descriptor of this process."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - numbers, not paths
        if int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                continue  # the descriptor of the listing itself, gone by now


def kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def kill_group(group: int, number: signal.Signals) -> None:
    if group <= 1:
        raise ValueError(f"refusing to signal process group {group}")
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


def sweep(
    scope: Scope, *, but: Collection[int] = (), adopted: bool = False, patience_s: float = 5.0
) -> int:
    """Kill every member of `scope`, and with `adopted` every child of this process, until nothing
    is left; returns how many were found.

    The cookie and the log find what left the process group (a double fork, its own session),
    adoption what also left its environment and its output.
    """
    found: set[int] = set()
    end = time.monotonic() + patience_s
    while remaining := {*scope.members(but=but), *(children() if adopted else ())}:
        found.update(remaining)
        for pid in remaining:
            kill(pid, signal.SIGKILL)
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    return len(found)
