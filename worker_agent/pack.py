"""The verb `pack`: many files of one job as one stream."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import BinaryIO, Final

from worker_agent.frames import sha256_of
from worker_agent.limit import allowed
from worker_agent.paths import inside, run_directory
from worker_agent.protocol import (
    BLOCK_BYTES,
    Artifact,
    FailureCode,
    PackedFile,
    PackItem,
    PackRequest,
)
from worker_agent.refusal import RefusedError, failed

LISTING: Final = "frames"
FRAME: Final = "frame"
CHECKPOINT: Final = "checkpoint"
# Kinds of files whose hash the dispatcher does not know.
EXTRAS: Final = frozenset({CHECKPOINT, "training_state"})


def pack(request: PackRequest, output: BinaryIO, limit: str | None = None) -> None:
    """Write the files to `output`. One that is not there is said to be absent. `limit` is what a
    key may read, where another host asks by one.

    Raises RefusedError: bad_request, transfer_corrupt.
    """
    run_dir = run_directory(request.run_dir)
    if limit is not None and str(run_dir) != allowed(limit):
        raise RefusedError("bad_request", f"the key is not for {run_dir}")
    for item in request.items:
        if item.kind != FRAME:
            _write(run_dir, item, output)
        if item.kind in (LISTING, FRAME):
            skip = item.skip if item.kind == FRAME else 0
            for frame in frames_of(run_dir, item.path)[skip:]:
                _write(run_dir, PackItem(path=frame.path, kind=FRAME), output)
    output.write(PackedFile(path="").to_json().encode() + b"\n")
    output.flush()


def _write(run_dir: Path, item: PackItem, output: BinaryIO) -> None:
    path = inside(run_dir, item.path)
    try:
        stream = path.open("rb")
    except (FileNotFoundError, IsADirectoryError):
        head = PackedFile(path=item.path, kind=item.kind, bytes=-1)
        output.write(head.to_json().encode() + b"\n")
        return
    with stream:
        left = max(0, os.fstat(stream.fileno()).st_size - item.skip)
        digest = sha256_of(path) if item.kind in EXTRAS else ""
        head = PackedFile(path=item.path, kind=item.kind, bytes=left, sha256=digest)
        output.write(head.to_json().encode() + b"\n")
        stream.seek(item.skip)
        while left:
            block = stream.read(min(BLOCK_BYTES, left))
            if not block:
                raise failed(FailureCode.TRANSFER_CORRUPT, f"{path} became shorter: try again")
            output.write(block)
            left -= len(block)


def frames_of(run_dir: Path, listing: str) -> list[Artifact]:
    """What a listing says of its frames; none when it is not there or no listing."""
    path = inside(run_dir, listing)
    folder = path.parent.relative_to(run_dir).as_posix()
    try:
        return [
            Artifact(
                kind=FRAME,
                path=f"{folder}/{frame['name']}",
                bytes=int(frame["bytes"]),
                sha256=str(frame["sha256"]),
            )
            for frame in json.loads(path.read_bytes())["frames"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []
