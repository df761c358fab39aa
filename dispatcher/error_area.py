"""Moves the source videos of a failed job into an error area, where no ingest meets them again.

Each file is renamed, never copied: at every moment it is whole in one of the two places. What was
broken off goes on when it is asked for again; the job knows where its videos lie.
"""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass
from pathlib import Path

from dispatcher.artifact_store import sync
from dispatcher.core.model import Job, JobKind, JobState
from dispatcher.errors import CosmaError, UsageError
from dispatcher.sources import split_remote
from dispatcher.store.base import Store
from dispatcher.store.rows import Segment

FAILED = (JobState.HELD, JobState.ERROR, JobState.CANCELLED)
INTENDED = "setting_aside"  # written before the first file moves
DONE = "set_aside"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    source: Path
    target: Path


async def set_aside(store: Store, job: Job, area: Path) -> list[Move]:
    """Returns what was moved, now or before. Raises UsageError and CosmaError; what was moved by
    then stays there, and is found again by the next call."""
    segment = await _segment(store, job)
    moves = _moves(segment, area / job.acquisition / job.id)
    if not moves:
        return []
    await asyncio.to_thread(_check, moves)
    told = {"moves": [[str(move.source), str(move.target)] for move in moves]}
    await store.record_event(INTENDED, job=job.id, payload=told)
    for move in moves:
        await asyncio.to_thread(_move, move)
    await store.move_clips(job.id, {str(move.source): str(move.target) for move in moves})
    await store.record_event(DONE, job=job.id, payload=told)
    return moves


async def _segment(store: Store, job: Job) -> Segment:
    if job.kind is not JobKind.RECONSTRUCT:
        raise UsageError("a stitch has no source videos", where=job.id)
    if job.state not in FAILED:
        raise UsageError(
            f"it is {job.state}, its videos stay", where=job.id,
            fix=f"only those of held, failed and cancelled jobs: cosma job cancel {job.id}",
        )  # fmt: skip
    (segment,) = await store.segments(job=job.id)
    for clip in segment.clips:
        if split_remote(clip.source) is not None:
            raise UsageError(
                "the video lies on another machine", where=clip.source, fix="move it there"
            )
    return segment


def _moves(segment: Segment, directory: Path) -> list[Move]:
    """Those that lie in the area stay where they are: whatever area they were moved to."""
    return [
        Move(source=Path(clip.source), target=directory / clip.name)
        for clip in segment.clips
        if Path(clip.source) != directory / clip.name
    ]


def _check(moves: list[Move]) -> None:
    """Before anything moves: each file is in one of its two places, and none is in the way."""
    for move in moves:
        here, there = _lies(move.source), _lies(move.target)
        if here and there:
            raise CosmaError(
                "a file of that name is there already", where=str(move.target),
                fix="look at it, and move it away",
            )  # fmt: skip
        if not here and not there:
            raise CosmaError("the video is gone", where=str(move.source))
        if move.source.is_symlink() and not move.source.readlink().is_absolute():
            raise CosmaError(
                "a relative symbolic link leads nowhere from elsewhere", where=str(move.source),
                fix="set aside what it leads to by hand",
            )  # fmt: skip


def _lies(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _move(move: Move) -> None:
    if not _lies(move.source):
        return  # by an earlier call
    try:
        move.target.parent.mkdir(parents=True, exist_ok=True)
        move.source.rename(move.target)
        sync(move.target.parent)
        sync(move.source.parent)
    except OSError as error:
        apart = error.errno == errno.EXDEV
        raise CosmaError(
            "cannot be moved to the error area", where=str(move.source),
            why=f"{move.target} is on another file system" if apart else error.strerror or "",
            fix="Give an error area on the same one: --to DIR"
            if apart
            else "Check the permissions of both directories",
        ) from None  # fmt: skip
