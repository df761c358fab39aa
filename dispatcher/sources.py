"""Sources of an ingest: finding videos and logs, and a first look at each video with ffprobe.

A source is a path of this machine, or `host:/absolute/path` as the operator's own ssh knows the
host; the second kind is never copied through here, the hosts of the farm pull it themselves.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dispatcher.core.estimate import ClipSize
from dispatcher.core.model import Reason
from dispatcher.core.survey import is_log, is_video, printable
from dispatcher.errors import CosmaError, UsageError

_REMOTE = re.compile(r"^(?P<host>[A-Za-z0-9_][A-Za-z0-9_.@-]*):(?P<path>/.*)$", re.DOTALL)
_FFPROBE_TIMEOUT_S = 60
_LIST_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One video, or the log of a vehicle. `relative` is below the ingested path, "/" separated."""

    relative: str
    location: str  # absolute path, or host:/absolute/path
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipProblem:
    reason: Reason
    message: str
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipLook:
    """What a first look at a clip showed."""

    size: ClipSize
    problem: ClipProblem | None = None


def split_remote(location: str) -> tuple[str, str] | None:
    """`host:/path` -> (host, path); None for a path of this machine."""
    match = _REMOTE.match(location)
    return (match["host"], match["path"]) if match else None


def find_files(location: str) -> tuple[SourceFile, ...]:
    """All MP4 files and navigation logs at or below a source; beside a single file its logs, too.

    Raises UsageError when the path is not there, CosmaError when a remote one cannot be listed.
    """
    remote = split_remote(location)
    found = _find_remote(*remote) if remote else _find_local(Path(location))
    if not any(is_video(file.relative) for file in found):
        raise UsageError(
            "no .MP4 file found",
            where=location,
            fix="give a directory laid out as <auv>/<gopro_serial>/<segment>/*.MP4, or one of "
            "GoPro files",
        )
    return tuple(sorted(found, key=lambda file: file.relative))


def _find_local(root: Path) -> list[SourceFile]:
    root = root.expanduser().absolute()
    if root.is_file():
        if not is_video(root.name):
            raise UsageError("no video", where=str(root), why="its name does not end in .MP4")
        beside = (path for path in root.parent.iterdir() if is_log(path.name) and path.is_file())
        return [_local(path, root.parent) for path in (root, *beside)]
    if not root.is_dir():
        raise UsageError("no such file or directory", where=str(root), fix="check the path")
    try:
        return [_local(path, root) for path in _below(root) if path.is_file()]
    except OSError as error:  # passed over, its segments would be missing without a word
        raise UsageError(
            "cannot be read", where=str(error.filename or root),
            why=error.strerror or str(error), fix="allow it, or move it elsewhere",
        ) from None  # fmt: skip


def _below(root: Path) -> Iterator[Path]:
    """Raises OSError for a directory that cannot be listed."""

    def refuse(error: OSError) -> None:
        raise error

    for directory, _, names in os.walk(root, onerror=refuse):
        yield from (Path(directory, name) for name in names if _wanted(name))


def _wanted(name: str) -> bool:
    return is_video(name) or is_log(name)


def _local(path: Path, root: Path) -> SourceFile:
    return SourceFile(
        relative=path.relative_to(root).as_posix(), location=str(path), bytes=path.stat().st_size
    )


def _find_remote(host: str, path: str) -> list[SourceFile]:
    names = ["(", "-iname", "*.mp4", "-o", "-iname", "nav.csv", "-o", "-iname", "*.nav.csv", ")"]
    command = ["find", "-L", path, "-type", "f", *names, "-printf", r"%s\t%p\0"]
    try:
        done = subprocess.run(
            ["ssh", "-aTx", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "--", host,
             shlex.join(command)],
            capture_output=True, stdin=subprocess.DEVNULL, timeout=_LIST_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CosmaError("cannot list", where=f"{host}:{path}", why=str(error)) from None
    if done.returncode != 0:
        raise CosmaError(
            "cannot list the source",
            where=f"{host}:{path}",
            why=os.fsdecode(done.stderr).strip() or f"ssh ended with {done.returncode}",
            fix=f"see that `ssh {host} true` works without a question and that the path exists",
        )
    files = []
    for record in filter(None, done.stdout.split(b"\0")):
        size, _, name = record.partition(b"\t")
        full = os.fsdecode(name)
        relative = full.removeprefix(path.rstrip("/")).lstrip("/") or Path(full).name
        if _wanted(relative):
            location = f"{host}:{full}"
            files.append(SourceFile(relative=relative, location=location, bytes=int(size)))
    return files


def inspect_clip(file: SourceFile) -> ClipLook:
    """How large a clip is, and what is plainly wrong with it before anything is moved.

    Remote clips, and all clips where ffprobe is not installed, are judged by the Validation stage.
    """
    name = printable(Path(file.relative).name)
    size = ClipSize(bytes=file.bytes)
    if file.bytes == 0:
        empty = ClipProblem(
            reason=Reason.INPUT_EMPTY,
            message=f"{name}: the file has 0 bytes",
            advice="copy it from the camera again",
        )
        return ClipLook(size=size, problem=empty)
    if split_remote(file.location) or shutil.which("ffprobe") is None:
        return ClipLook(size=size)
    try:
        done = subprocess.run(
            ["ffprobe", "-v", "error", "-show_entries",
             "stream=codec_type,width,height:format=duration", "-of", "json",
             "-i", f"file:{file.location}"],
            capture_output=True, stdin=subprocess.DEVNULL, timeout=_FFPROBE_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return ClipLook(size=size)
    if done.returncode != 0:
        said = os.fsdecode(done.stderr).strip().splitlines()
        last = said[-1] if said else f"ffprobe ended with {done.returncode}"
        why = printable(last).split(": ", 1)[-1]
        if any("moov atom not found" in line for line in said):
            why = "moov atom not found: the recording was cut off, or this is no MP4"
        unreadable = ClipProblem(
            reason=Reason.INPUT_UNREADABLE,
            message=f"{name}: not a readable video: {why}",
            advice="copy it from the camera again, or repair it in the camera that recorded it",
        )
        return ClipLook(size=size, problem=unreadable)
    found = json.loads(done.stdout)
    streams = found.get("streams", [])
    video = next((stream for stream in streams if stream.get("codec_type") == "video"), None)
    if video is None:
        kinds = ", ".join(str(stream.get("codec_type")) for stream in streams)
        no_video = ClipProblem(
            reason=Reason.INPUT_NO_VIDEO,
            message=f"{name}: no video track, only {kinds or 'nothing'}",
            advice="take it out of the survey",
        )
        return ClipLook(size=size, problem=no_video)
    return ClipLook(size=_size(file, found.get("format", {}), video))


def _size(file: SourceFile, container: dict[str, str], video: dict[str, int]) -> ClipSize:
    try:
        seconds = float(container["duration"])
    except (KeyError, ValueError):
        seconds = 0.0
    return ClipSize(
        bytes=file.bytes,
        seconds=seconds if 0.0 < seconds < math.inf else None,
        width=video.get("width"),
        height=video.get("height"),
    )
