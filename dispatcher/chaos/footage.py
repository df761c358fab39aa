"""Footage for a drill: small real videos, no two alike, and one that nobody can read."""

from __future__ import annotations

import hashlib
import random
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from dispatcher.errors import CosmaError

_AUVS = ("auv1", "auv2")
_SMALL, _LARGE = (64_000, 256_000), (6_000_000, 9_000_000)
_LARGE_EVERY = 2  # a large one takes long enough to be cut off on its way
_BROKEN_FROM = 4  # jobs; fewer are all good


@dataclass(frozen=True, slots=True)
class Footage:
    """`clips`: file -> SHA-256. `broken`: jobs that can only be held, whatever happens."""

    root: Path
    clips: dict[Path, str]
    broken: frozenset[str]


def make_footage(root: Path, survey: str, jobs: int, seed: int) -> Footage:
    """One clip and one segment a job, over two vehicles. Raises CosmaError without ffmpeg."""
    rng = random.Random(seed)
    root.mkdir(parents=True)
    film = _film(root / "film.mp4")
    clips: dict[Path, str] = {}
    broken = set()
    for number in range(1, jobs + 1):
        auv, label = _AUVS[number % len(_AUVS)], f"s{number:03d}"
        path = root / auv / "c1" / label / f"GX01{number:04d}.MP4"
        path.parent.mkdir(parents=True)
        size = rng.randint(*(_LARGE if number % _LARGE_EVERY == 1 else _SMALL))
        # A `free` box: readers of the container skip it (ISO/IEC 14496-12, 8.1.2).
        content = film + struct.pack(">I4s", 8 + size, b"free") + rng.randbytes(size)
        if number == jobs and jobs >= _BROKEN_FROM:
            content = content[: len(film) // 2]
            broken.add(f"{survey}-{auv}-{label}")
        path.write_bytes(content)
        clips[path] = hashlib.sha256(content).hexdigest()
    (root / "film.mp4").unlink()
    return Footage(root, clips, frozenset(broken))


def _film(path: Path) -> bytes:
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=s=64x48:r=5:d=1"]
    try:
        done = subprocess.run(
            [*command, "-y", str(path)], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except FileNotFoundError:
        why = "ffmpeg is not installed"
    else:
        why = done.stderr.strip()
        if done.returncode == 0:
            return path.read_bytes()
    raise CosmaError("cannot make footage", where=str(path), why=why, fix="run `make setup`")
