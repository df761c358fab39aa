"""Cores and RAM that this process may use: of the machine, less what control groups withhold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from worker_agent import processes
from worker_agent.protocol import AttemptMemory

_MIB = 1024 * 1024
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


@dataclass(frozen=True, slots=True)
class _Names:
    """Files of one version of cgroups(7), and the fields of memory.stat that can be dropped."""

    limit: str
    used: str
    droppable: tuple[str, ...]


_V1 = _Names(
    "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)
_V2 = _Names("memory.max", "memory.current", ("inactive_file", "active_file"))


def memory_mib(*, own: Path = _OWN_CGROUPS, root: Path = _CGROUPS) -> tuple[int, int]:
    """(total, available): of /proc/meminfo, and of every group this process is in."""
    fields = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0]) // 1024
    total, available = fields["MemTotal"], fields["MemAvailable"]
    for directory, version in _groups("memory", own, root):
        names = _V1 if version == 1 else _V2
        limit = _number(directory / names.limit)
        if limit is None:
            continue
        used = _number(directory / names.used) or 0
        droppable = _fields(directory / "memory.stat", names.droppable)
        total = min(total, limit // _MIB)
        available = min(available, max(0, limit - max(0, used - droppable)) // _MIB)
    return total, available


def cores(*, own: Path = _OWN_CGROUPS, root: Path = _CGROUPS) -> int:
    """Whole cores: of the affinity mask, and of every group's CPU quota; at least one."""
    found = float(len(os.sched_getaffinity(0)))
    for directory, version in _groups("cpu", own, root):
        if version == 1:
            quota = _number(directory / "cpu.cfs_quota_us")
            period = _number(directory / "cpu.cfs_period_us")
        else:
            words = [*_text(directory / "cpu.max").split(), "", ""]
            quota, period = _positive(words[0]), _positive(words[1])
        if quota and period:
            found = min(found, quota / period)
    return max(1, int(found))


def ram_of_attempts() -> tuple[AttemptMemory, ...]:
    """RAM of every attempt on this host: what its processes hold and the kernel cannot drop."""
    used: dict[tuple[str, int], int] = {}
    for pid in processes.pids():
        owner = processes.attempt_of(pid)
        if owner is not None:
            kib = _fields(Path(f"/proc/{pid}/status"), ("RssAnon:", "RssShmem:"))
            used[owner] = used.get(owner, 0) + kib
    return tuple(
        AttemptMemory(run_dir=run_dir, attempt=attempt, used_mib=kib // 1024)
        for (run_dir, attempt), kib in sorted(used.items())
    )


def _groups(controller: str, own: Path, root: Path) -> Iterator[tuple[Path, int]]:
    """(directory, version of cgroups) of this process's group and of all above it: each of them
    may set a limit. cgroups(7): v2 is "0::/path", v1 has a line per hierarchy."""
    for line in _text(own).splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            top, version = root, 2
        elif controller in controllers.split(","):
            top, version = root / controller, 1
        else:
            continue
        directory = top / path.lstrip("/")
        yield directory, version
        while directory != top:
            directory = directory.parent
            yield directory, version


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _positive(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None  # "max" and "-1": no limit


def _number(path: Path) -> int | None:
    return _positive(_text(path))


def _fields(path: Path, names: tuple[str, ...]) -> int:
    """The sum of some fields of a file of "name value" lines."""
    rows = (line.split() for line in _text(path).splitlines())
    return sum(int(row[1]) for row in rows if len(row) > 1 and row[0] in names)
