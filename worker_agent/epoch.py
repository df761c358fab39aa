"""Fences dispatchers: a host obeys the highest dispatcher epoch it has ever seen."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from worker_agent.durable import overwrite_text, write_json
from worker_agent.refusal import RefusedError, is_disk_full


def state_directory(work_dir: Path) -> Path:
    """`<work_dir>/.cosma`: what the agent remembers of this host."""
    path = work_dir / ".cosma"
    path.mkdir(parents=True, exist_ok=True)
    return path


def check_epoch(work_dir: Path, epoch: int) -> None:
    """Remember `epoch`, or raise RefusedError (stale_epoch) when a later one has been here."""
    directory = state_directory(work_dir)
    path = directory / "epoch"
    descriptor = os.open(directory / "epoch.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        seen = _read(path)
        if epoch < seen:
            raise RefusedError(
                "stale_epoch",
                f"{work_dir} obeys dispatcher epoch {seen}, this request has {epoch}: "
                f"a newer dispatcher has taken over, stop this one (or, if that one is gone for "
                f"good, remove {path} on the host)",
            )
        if epoch > seen:
            _remember(path, epoch)
    finally:
        os.close(descriptor)


def _remember(path: Path, epoch: int) -> None:
    try:
        write_json(path, epoch)
    except OSError as error:
        if not is_disk_full(error) or not path.exists():
            raise
        # A full disk must not lock out whoever comes to free it.
        overwrite_text(path, str(epoch))


def _read(path: Path) -> int:
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return 0
    if not text.isdigit():
        raise RefusedError(
            "agent_failed",
            f"{path} does not hold a number: write the dispatcher's epoch into it by hand",
        )
    return int(text)
