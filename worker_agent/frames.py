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


# Pictures of a source that may be missing of those that its container says are shown: duration and
# rate are rounded there, and the first and the last may belong to an open group.
MAX_UNDECODED, MAX_UNDECODED_SHARE = 2, 0.01


def missing_pictures(shown: int, decoded: int) -> bool:
    """Whether more of the pictures that a clip shows were not decoded than may be missing."""
    return decoded < shown - max(MAX_UNDECODED, int(MAX_UNDECODED_SHARE * shown))


def verify_counts(run_dir: Path, listing: str) -> None:
    """Check that what was decoded of every clip for a frames.json is what its container holds.

    Raises RefusedError naming the first clip of which too little was decoded, or that no frame is
    of.
    """
    path = inside(run_dir, listing)
    try:
        data = json.loads(path.read_bytes())
        clips = [(str(c["name"]), int(c["shown"]), int(c["decoded"])) for c in data["clips"]]
        with_frames = {str(frame["clip"]) for frame in data["frames"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unproven(f"{path} does not say what was decoded ({error!r})") from None
    if not clips:
        raise _unproven(f"{path} lists no clip")
    for name, shown, decoded in clips:
        if missing_pictures(shown, decoded):
            raise _unproven(f"{path}: {decoded} of {shown} pictures of {name} were decoded")
        if name not in with_frames:
            raise _unproven(f"{path} has no frame of {name}")


def _unproven(what: str) -> RefusedError:
    return RefusedError("agent_failed", f"{what}: nothing was removed, extract the frames again")


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
