"""Processes as /proc shows them: whose attempt they belong to, and how to end all of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from worker_agent.attempts import COOKIE, parse_cookie

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


def stat_of(pid: int) -> ProcessStat | None:
    """None once the process is gone."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return ProcessStat(fields[0], int(fields[1]), int(fields[19]), int(fields[21]))


def cookie_of(pid: int) -> str | None:
    """The value of COSMA_ATTEMPT a process was started with, if it was."""
    try:
        block = (_PROC / str(pid) / "environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    prefix = f"{COOKIE}=".encode()
    for entry in block.split(b"\0"):
        if entry.startswith(prefix):
            return os.fsdecode(entry[len(prefix) :])
    return None


def attempt_of(pid: int) -> tuple[str, int] | None:
    """(run_dir, attempt) a process belongs to; None when it is not one of cosma's."""
    value = cookie_of(pid)
    return None if value is None else parse_cookie(value)


def is_alive(pid: int, start_ticks: int) -> bool:
    """A pid is a name that gets reused; with its start time it is an identity."""
    stat = stat_of(pid)
    return stat is not None and stat.start_ticks == start_ticks and stat.state not in "ZX"


def members(cookie: str, *, but: int) -> list[int]:
    """Live processes that carry the cookie, except `but`."""
    found = []
    for pid in pids():
        if pid == but or cookie_of(pid) != cookie:
            continue
        stat = stat_of(pid)
        if stat is not None and stat.state not in "ZX":
            found.append(pid)
    return found


def children_of(parent: int) -> list[int]:
    """Live children of `parent`: with PR_SET_CHILD_SUBREAPER also what daemonised below it."""
    found = []
    for pid in pids():
        stat = stat_of(pid)
        if stat is not None and stat.parent == parent and stat.state not in "ZX":
            found.append(pid)
    return found


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


def sweep(cookie: str, *, but: int, parent: int | None = None, patience_s: float = 5.0) -> int:
    """Kill everything that carries the cookie, and every child of `parent`, until nothing is
    left; returns how many were found.

    Environment cookies find what left the process group (a double fork, its own session),
    adoption what also left its environment.
    """
    found: set[int] = set()
    end = time.monotonic() + patience_s
    while remaining := {
        *members(cookie, but=but),
        *(children_of(parent) if parent is not None else ()),
    }:
        found.update(remaining)
        for pid in remaining:
            kill(pid, signal.SIGKILL)
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    return len(found)
