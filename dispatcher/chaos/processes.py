"""Processes of this machine as /proc shows them, also those in namespaces below ours."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> bool:
    """False when it has ended already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def environment_of(pid: int) -> dict[str, str]:
    """What a process was started with; {} once it is gone."""
    try:
        block = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (os.fsdecode(entry).partition("=") for entry in block.split(b"\0") if entry)
    return {name: value for name, _, value in pairs}


def command_of(pid: int) -> str:
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")).strip()
    except OSError:
        return ""


def parent_of(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(text[text.rindex(")") + 2 :].split()[1])


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def all_pids() -> Iterator[int]:
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def in_space(pid: int, space: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/ns/pid").readlink() == space
    except OSError:
        return False
