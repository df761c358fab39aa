"""Which video files make which segment: pure rules over relative paths.

Two layouts are understood: `<auv>/<gopro_serial>/<segment>/*.MP4`, and GoPro's own flat naming, in
which GX010123.MP4 and GX020123.MP4 are chapters 01 and 02 of recording 0123.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

# GoPro: two letters (GX = HEVC, GH = AVC, GP = older), two digits chapter, four digits recording.
_GOPRO = re.compile(r"^G[A-Z](?P<chapter>\d{2})(?P<recording>\d{4})$", re.IGNORECASE)
_UNSAFE = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSegment:
    auv: str
    gopro_serial: str
    label: str
    clips: tuple[str, ...]  # relative paths, in order of recording


def is_video(path: str) -> bool:
    name = PurePosixPath(path).name
    return name.lower().endswith(".mp4") and not name.startswith(".")


def is_log(path: str) -> bool:
    """A vehicle's navigation log: docs/navigation.md."""
    name = PurePosixPath(path).name.lower()
    return name == "nav.csv" or name.endswith(".nav.csv")


def log_of(clip: str, logs: Iterable[str]) -> str | None:
    """The log that belongs to a clip: `<its name>.nav.csv` beside it, else the `nav.csv` of its
    directory or of the nearest one above. Relative paths."""
    path = PurePosixPath(clip)
    known = {log.lower(): log for log in logs}
    places = [path.parent, *path.parent.parents]
    wanted = [path.with_suffix(".nav.csv"), *(place / "nav.csv" for place in places)]
    return next((known[str(one).lower()] for one in wanted if str(one).lower() in known), None)


def printable(name: str) -> str:
    """A file name as text that every terminal and database takes: bytes that are no UTF-8, and
    control characters, as escapes."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def recording_key(path: str) -> tuple[str, int, str]:
    """Sorts clips: by recording, then chapter, then name."""
    stem = PurePosixPath(path).stem
    match = _GOPRO.match(stem)
    if match is None:
        return (stem, 0, path)
    return (match["recording"], int(match["chapter"]), path)


def group_clips(paths: Iterable[str], *, auv: str, serial: str) -> tuple[PlannedSegment, ...]:
    """Group relative video paths into segments, sorted by vehicle, camera and label.

    Three directories deep, the directories name vehicle, camera and segment. Anything shallower
    belongs to the vehicle `auv` and the camera `serial`: chapters of one GoPro recording are one
    segment, any other file is a segment of its own.
    """
    groups: dict[tuple[str, str, str], list[str]] = {}
    for path in paths:
        if not is_video(path):
            continue
        parts = PurePosixPath(path).parts
        if len(parts) >= 4:
            key = (parts[-4], parts[-3], parts[-2])
        else:
            match = _GOPRO.match(PurePosixPath(path).stem)
            label = match["recording"] if match else PurePosixPath(path).stem
            key = (auv, serial, label)
        groups.setdefault(key, []).append(path)
    return tuple(
        PlannedSegment(
            auv=printable(key[0]),
            gopro_serial=printable(key[1]),
            label=printable(key[2]),
            clips=tuple(sorted(clips, key=recording_key)),
        )
        for key, clips in sorted(groups.items())
    )


def slug(*words: str) -> str:
    """Lower case ASCII words joined by "-": safe as a directory name and in a shell.

    A word that has nothing left, or that is long, is told apart by a short hash of the original.
    """
    parts = []
    for word in words:
        clean = _UNSAFE.sub("-", word.lower()).strip("-")
        if not clean or len(clean) > 40:
            digest = hashlib.sha256(word.encode("utf-8", "surrogateescape")).hexdigest()[:8]
            clean = f"{clean[:31]}-{digest}".strip("-")
        parts.append(clean)
    return "-".join(parts)


def clip_name(order: int, path: str) -> str:
    """The name of a clip in `input/` on a host: order first, no surprising characters."""
    return f"{order:03d}-{_plain(path)}.MP4"


def log_name(order: int, clip: str, log: str) -> str:
    """The name in `input/` of the log of the clip of that order, and of those after it that share
    it. Only a clip's own ends in .nav.csv."""
    shared = PurePosixPath(log).name.lower() == "nav.csv"
    return f"{order:03d}-nav.csv" if shared else f"{order:03d}-{_plain(clip)}.nav.csv"


def _plain(path: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "_", PurePosixPath(path).stem)[:60].strip("_") or "clip"
