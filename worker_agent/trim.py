"""The verb `trim`: give free blocks back to the storage below the work directory's file system."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from worker_agent.disk import free_bytes
from worker_agent.protocol import TrimReport, TrimRequest
from worker_agent.refusal import failed

HELPER = "/usr/local/sbin/cosma-fstrim"  # installed by an administrator; see systemd/
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # often not on a user's PATH
_TIMEOUT_S = 300.0
_SAID = re.compile(r"\((\d+) bytes\)")


@dataclass(frozen=True, slots=True)
class _Way:
    method: str
    command: tuple[str, ...]


def trim(request: TrimRequest) -> TrimReport:
    """By the first way that works; without one the report says why. Raises RefusedError for a
    work directory that cannot be read."""
    path = Path(request.work_dir)
    if not path.is_absolute():
        raise failed("bad_request", f"work_dir {request.work_dir!r} is not an absolute path")
    mount, kind = mount_of(path)
    before = free_bytes(path)
    _commit(path)
    reasons = []
    for way in _ways(mount, request.mode):
        trimmed, why = _run(way)
        if trimmed is not None:
            return TrimReport(
                mount=mount,
                method=way.method,
                trimmed_bytes=trimmed,
                note="",
                free_before=before,
                free_after=free_bytes(path),
            )
        reasons.append(f"{way.method}: {why}")
    return TrimReport(
        mount=mount,
        method="",
        trimmed_bytes=None,
        note=f"{mount} ({kind}): {'; '.join(reasons) or 'fstrim needs root, and there is no sudo'}",
        free_before=before,
        free_after=free_bytes(path),
    )


def _ways(mount: str, mode: str) -> Iterator[_Way]:
    """As root itself; else by sudo, without a password: the helper that may do nothing else, then
    fstrim. `mode` sudo: not as root itself."""
    if mode == "auto" and os.geteuid() == 0:
        yield _Way("fstrim", (_program("fstrim") or "fstrim", "-v", mount))
        return
    sudo = _program("sudo")
    if sudo is None:
        return
    if os.access(HELPER, os.X_OK):
        yield _Way("helper", (sudo, "-n", HELPER, mount))
    yield _Way("sudo", (sudo, "-n", _program("fstrim") or "fstrim", "-v", mount))


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *_SBIN]))


def _run(way: _Way) -> tuple[int | None, str]:
    """(bytes that the kernel says were trimmed, "") or (None, why not)."""
    try:
        answer = subprocess.run(
            way.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        return None, f"{way.command[0]} is not installed (package util-linux)"
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, str(error)
    said = _SAID.search(answer.stdout)
    if answer.returncode == 0 and said is not None:
        return int(said.group(1)), ""
    return None, " ".join(answer.stdout.split()) or f"exit code {answer.returncode}"


def _commit(path: Path) -> None:
    """Blocks whose removal is still in the journal are not free yet, and cannot be trimmed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        ctypes.CDLL(None).syncfs(descriptor)
    finally:
        os.close(descriptor)


def mount_of(path: Path) -> tuple[str, str]:
    """(mount point, file system type) that holds `path`, from /proc/self/mountinfo."""
    place = path.resolve()
    while not os.path.ismount(place):
        place = place.parent
    kind = "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        mounted = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields.split()[4])
        if mounted == str(place):
            kind = rest.split()[0]  # the last one listed is the one on top
    return str(place), kind
