"""The verb `prune`: records of attempts that ended long ago.

What an attempt printed and how it ended, the dispatcher has. The newest attempt of a job stays
while the job may go on: a start that comes late is refused by it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from worker_agent.attempts import AttemptFiles, attempts_of, lock_is_held
from worker_agent.disk import tree_bytes
from worker_agent.epoch import check_epoch
from worker_agent.exclusive import alone
from worker_agent.protocol import PruneReport, PruneRequest
from worker_agent.refusal import RefusedError

_TOLD = 500  # jobs in one report


def prune(request: PruneRequest) -> PruneReport:
    """Raises RefusedError (stale_epoch)."""
    work_dir = Path(request.work_dir)
    check_epoch(work_dir, request.epoch)
    before = time.time() - request.keep_s
    attempts = removed = freed = 0
    waiting: list[str] = []
    for run_dir in _run_dirs(work_dir):
        name = run_dir.relative_to(work_dir).as_posix()
        try:
            with alone(run_dir):
                old = [files for files in _ended(run_dir) if _ended_at(files) < before]
                for files in old:
                    if files.attempt == max(attempts_of(run_dir)) and name not in request.over:
                        waiting.append(name)
                        continue
                    size = tree_bytes(files.directory)
                    _remove(files)
                    attempts, removed, freed = attempts + 1, removed + size[0], freed + size[1]
        except RefusedError:
            continue  # another verb is at work there
    return PruneReport(
        attempts=attempts, removed_bytes=removed, freed_bytes=freed,
        waiting=tuple(waiting[:_TOLD]),
    )  # fmt: skip


def _run_dirs(work_dir: Path) -> Iterator[Path]:
    for path in sorted(work_dir.glob("*/*/attempts")):
        if not path.parent.parent.name.startswith("."):
            yield path.parent


def _ended(run_dir: Path) -> list[AttemptFiles]:
    """Oldest first; none while one runs."""
    if lock_is_held(AttemptFiles(run_dir, 0)):
        return []
    return [AttemptFiles(run_dir, number) for number in attempts_of(run_dir)]


def _ended_at(files: AttemptFiles) -> float:
    """When last anything was written of it."""
    return max(entry.stat().st_mtime for entry in os.scandir(files.directory))


def _remove(files: AttemptFiles) -> None:
    """`started.json` last: until then it counts as an attempt, and is found again."""
    for path in files.directory.iterdir():
        if path == files.started:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    files.started.unlink()
    files.directory.rmdir()
