"""Work disks of a host that are file systems of their own: small ones, and images of disks."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_SBIN = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
MIB = 1 << 20
_GONE_S = 60.0


def as_root(*command: str) -> list[str]:
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    return [*sudo, *command]


def _run(*command: str) -> int:
    """As root. The exit code; 127 for a program that is not there."""
    program = shutil.which(command[0], path=_SBIN)
    if program is None:
        return 127
    return subprocess.run(as_root(program, *command[1:]), capture_output=True).returncode


def _mounted(place: Path, *arguments: str) -> None:
    if _run("mount", *arguments, str(place)) != 0:
        pytest.skip("a small file system cannot be mounted here (root or sudo)")


def _unmount(place: Path) -> None:
    end = time.monotonic() + _GONE_S
    # What has told of its end may take a moment to be gone, and nothing tells of that.
    while _run("umount", str(place)) != 0:
        assert time.monotonic() < end, f"{place} is still in use"
        time.sleep(0.05)


@contextmanager
def memory_disk(place: Path, mib: int) -> Iterator[Path]:
    """A tmpfs at `place`: what does not fit is ENOSPC."""
    place.mkdir(parents=True)
    _mounted(place, "-t", "tmpfs", "-o", f"size={mib}m,uid={os.geteuid()}", "none")
    try:
        yield place
    finally:
        _unmount(place)


def resize(place: Path, size: int) -> None:
    """A tmpfs gets so many bytes."""
    assert _run("mount", "-o", f"remount,size={size}", str(place)) == 0


@dataclass(frozen=True, slots=True)
class DiskImage:
    """A sparse file with an ext4 in it, mounted by a loop device: blocks that are trimmed go back
    to the file system that the image lies on, as those of a thin volume go back to its pool."""

    file: Path
    place: Path

    def allocated(self) -> int:
        """Bytes that the image takes now."""
        assert _run("sync", "-f", str(self.place)) == 0
        return self.file.stat().st_blocks * 512

    def trim(self) -> None:
        """ext4 remembers which groups were trimmed, and mkfs has discarded all: from here on a
        trim counts what became free since."""
        assert _run("fstrim", str(self.place)) == 0


@contextmanager
def disk_image(file: Path, place: Path, mib: int) -> Iterator[DiskImage]:
    place.mkdir(parents=True)
    with file.open("wb") as stream:
        stream.truncate(mib * MIB)
    # Groups of 8 MiB, as a trim counts by group, and nothing left to be written later by itself.
    layout = ("-b", "4096", "-g", "2048", "-J", "size=4", "-m", "0")
    lazy = "lazy_itable_init=0,lazy_journal_init=0"
    if _run("mkfs.ext4", "-q", "-F", *layout, "-E", lazy, str(file)) != 0:
        pytest.skip("a small file system cannot be mounted here (root or sudo)")
    _mounted(place, "-o", "loop", str(file))
    try:
        _run("chown", str(os.geteuid()), str(place))
        yield DiskImage(file, place)
    finally:
        _unmount(place)
