"""The kernel's own count of out-of-memory kills: what tells one from any other SIGKILL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_VMSTAT = Path("/proc/vmstat")
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def kills(
    *, vmstat: Path = _VMSTAT, own: Path = _OWN_CGROUPS, root: Path = _CGROUPS
) -> dict[str, int]:
    """Kills so far: of the whole "host", and of this process's "cgroup"; what cannot be read is
    left out. A limit of a control group counts in both."""
    found = {"host": _field(vmstat, "oom_kill"), "cgroup": _cgroup(own, root)}
    return {name: count for name, count in found.items() if count is not None}


def since(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """The counters that rose, and by how much."""
    return {n: c - before[n] for n, c in after.items() if n in before and c > before[n]}


def _cgroup(own: Path, root: Path) -> int | None:
    """cgroups(7): v2 is "0::/path", v1 has a line per controller."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        number, controllers, path = line.split(":", 2)
        place = path.lstrip("/")
        if number == "0" and not controllers:
            count = _field(root / place / "memory.events", "oom_kill")
        elif "memory" in controllers.split(","):
            count = _field(root / "memory" / place / "memory.oom_control", "oom_kill")
        else:
            continue
        if count is not None:
            return count
    return None


def _field(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return None
