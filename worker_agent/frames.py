"""Frames as their listing says they are: what proves that their source is not needed any more."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from worker_agent.paths import inside
from worker_agent.refusal import RefusedError


def verify_frames(run_dir: Path, listing: str) -> int:
    """Check every frame of a frames.json by size and SHA-256; returns how many there are.

    Raises RefusedError naming the first frame that is not what the listing says.
    """
    path = inside(run_dir, listing)
    try:
        frames = json.loads(path.read_bytes())["frames"]
        expected = [(str(f["name"]), int(f["bytes"]), str(f["sha256"])) for f in frames]
    except FileNotFoundError:
        raise _unproven(f"{path} is not there") from None
    except (ValueError, KeyError, TypeError) as error:
        raise _unproven(f"{path} is not a listing of frames ({error!r})") from None
    if not expected:
        raise _unproven(f"{path} lists no frame")
    folder = path.parent.relative_to(run_dir).as_posix()
    for name, size, digest in expected:
        frame = inside(run_dir, f"{folder}/{name}")
        found = frame.stat().st_size if frame.is_file() else None
        if found != size:
            raise _unproven(f"{frame} has {found} bytes, the listing says {size}")
        if sha256_of(frame) != digest:
            raise _unproven(f"{frame} does not have the listed SHA-256")
    return len(expected)


def _unproven(what: str) -> RefusedError:
    return RefusedError("agent_failed", f"{what}: nothing was removed, extract the frames again")


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
