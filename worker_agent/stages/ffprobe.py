"""What ffprobe says of one video file, as typed values. Raises StageFailure naming the clip."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import ffmpeg

from worker_agent.messages import FailureCode
from worker_agent.stages.api import StageFailure

__all__ = [
    "ClipFacts",
    "GpmdPacket",
    "ffmpeg_path",
    "gpmd_packets",
    "printable",
    "probe_clip",
    "run_ffmpeg",
]

COPY_AGAIN = (
    "Copy the file from the camera again; if it is no better there, ingest the segment without it."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFacts:
    """One clip of `output/validation.json`. Width and height are as shown, after rotation."""

    name: str
    order: int
    bytes: int
    duration_s: float
    start_s: float  # of the video stream, on the clip's own timeline
    width: int
    height: int
    fps: float
    codec: str
    rotation: int
    frames_stored: int  # coded pictures in the file; an edit list may show fewer
    frames_estimated: int  # pictures that are shown
    has_gpmd: bool
    gpmd_stream: int | None
    video_stream: int
    creation_time: str | None
    origin_s: float = 0.0  # of the file, on that timeline: ffmpeg counts its pictures from here

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ClipFacts:
        return cls(**data)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpmdPacket:
    """One payload of the GoPro telemetry track: seconds on the clip's timeline, size in bytes."""

    time_s: float
    duration_s: float
    bytes: int


def printable(name: str) -> str:
    """A file name as one printable token: quoted when it holds anything but plain characters."""
    plain = name.isascii() and name.isprintable() and " " not in name and name != ""
    return name if plain else ascii(name)


def ffmpeg_path(path: Path) -> str:
    """A name ffmpeg takes literally, whatever characters (or leading dash) it holds."""
    return f"file:{path.absolute()}"


def probe_clip(path: Path, order: int) -> ClipFacts:
    """Read every packet of the file, so that one that ends early is found here, not in the decoder.

    Raises StageFailure: INPUT_MISSING, INPUT_EMPTY, INPUT_UNREADABLE, INPUT_NO_VIDEO,
    INPUT_TRUNCATED, TOOL_MISSING.
    """
    name = printable(path.name)
    if not path.is_file():
        raise StageFailure(
            FailureCode.INPUT_MISSING,
            f"clip {name} is not in the job's input directory",
            advice="Retry the job, so that its inputs are sent again.",
        )
    size = path.stat().st_size
    if size == 0:
        raise StageFailure(
            FailureCode.INPUT_EMPTY, f"clip {name} is empty (0 bytes)", advice=COPY_AGAIN
        )
    if shutil.which("ffprobe") is None:
        raise StageFailure(
            FailureCode.TOOL_MISSING,
            "ffprobe is not on PATH on this host",
            advice="Install ffmpeg on the host.",
        )
    try:
        report = ffmpeg.probe(ffmpeg_path(path), v="error", count_packets=None)
    except ffmpeg.Error as error:
        raise _unreadable(path.name, size, _first_complaint(error.stderr, path)) from None
    if not report.get("streams"):
        raise _unreadable(path.name, size, "moov atom not found, or empty")
    return _facts(report, path.name, order, size)


def _unreadable(name: str, size: int, why: str) -> StageFailure:
    no_index = "The file has no index: it is no MP4, or the recording or copy was cut off. "
    return StageFailure(
        FailureCode.INPUT_UNREADABLE,
        f"clip {printable(name)} ({size} bytes) is not a readable video: {why}",
        advice=f"{no_index if 'moov' in why else ''}{COPY_AGAIN}",
        evidence={"clip": name, "bytes": size, "ffprobe": why},
    )


def gpmd_packets(path: Path, stream: int) -> list[GpmdPacket]:
    """Times and sizes of the packets of a telemetry track, in file order. Raises ffmpeg.Error."""
    report = ffmpeg.probe(
        ffmpeg_path(path), v="error", select_streams=str(stream), show_packets=None
    )
    return [
        GpmdPacket(
            time_s=float(packet.get("pts_time", 0.0)),
            duration_s=float(packet.get("duration_time", 0.0)),
            bytes=int(packet["size"]),
        )
        for packet in report.get("packets", [])
    ]


def _facts(report: dict[str, Any], raw_name: str, order: int, size: int) -> ClipFacts:
    name = printable(raw_name)
    streams = report.get("streams", [])
    videos = [
        s
        for s in streams
        if s.get("codec_type") == "video" and not s.get("disposition", {}).get("attached_pic")
    ]
    if not videos:
        kinds = ", ".join(str(s.get("codec_name", s.get("codec_type", "?"))) for s in streams)
        raise StageFailure(
            FailureCode.INPUT_NO_VIDEO,
            f"clip {name} holds no video (streams: {kinds or 'none'})",
            advice="Remove it from the segment, or ingest the file that has the pictures.",
            evidence={"clip": raw_name, "streams": kinds},
        )
    video = videos[0]
    width, height = int(video.get("width", 0)), int(video.get("height", 0))
    fps = float(_ratio(video.get("avg_frame_rate")) or _ratio(video.get("r_frame_rate")) or 0)
    container = report.get("format", {})
    duration = float(video.get("duration") or container.get("duration") or 0.0)
    read = int(video.get("nb_read_packets", 0))
    # A file without a frame count in its header (Matroska, fragments) is judged by its duration.
    promised = int(video.get("nb_frames") or round(duration * fps) or read)
    slack = 0 if "nb_frames" in video else max(2, promised // 20)
    if width < 16 or height < 16 or read == 0 or fps <= 0 or duration <= 0:
        raise StageFailure(
            FailureCode.INPUT_UNREADABLE,
            f"clip {name} has a video track without usable pictures "
            f"({width}x{height}, {read} packets, {duration:.3g} s)",
            advice=COPY_AGAIN,
        )
    if read < promised - slack:
        raise StageFailure(
            FailureCode.INPUT_TRUNCATED,
            f"clip {name} ends early: {read} of {promised} frames are in the file "
            f"({100 * read / promised:.0f} %)",
            advice=COPY_AGAIN,
            evidence={"clip": raw_name, "frames_found": read, "frames_promised": promised},
        )
    rotation = _rotation(video)
    aspect = _ratio(video.get("sample_aspect_ratio", "1:1").replace(":", "/")) or Fraction(1)
    width = round(width * aspect)
    if rotation % 180:
        width, height = height, width
    gpmd = [s for s in streams if s.get("codec_tag_string") == "gpmd"]
    tags = {**container.get("tags", {}), **video.get("tags", {})}
    return ClipFacts(
        name=raw_name,
        order=order,
        bytes=size,
        duration_s=round(duration, 6),
        start_s=max(0.0, float(video.get("start_time") or 0.0)),
        width=width,
        height=height,
        fps=round(fps, 6),
        codec=str(video.get("codec_name", "unknown")),
        rotation=rotation,
        frames_stored=read,
        frames_estimated=min(read, max(1, round(duration * fps))),
        has_gpmd=bool(gpmd),
        gpmd_stream=int(gpmd[0]["index"]) if gpmd else None,
        video_stream=int(video["index"]),
        creation_time=tags.get("creation_time"),
        origin_s=float(container.get("start_time") or 0.0),
    )


def _rotation(video: dict[str, Any]) -> int:
    for item in video.get("side_data_list", []):
        if "rotation" in item:
            return int(item["rotation"]) % 360
    return 0


def _ratio(text: str | None) -> Fraction | None:
    try:
        value = Fraction(text or "0")
    except (ValueError, ZeroDivisionError):
        return None
    return value if value > 0 else None


def _first_complaint(stderr: bytes, path: Path) -> str:
    """The first thing ffprobe complained of, without its own decoration."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    if not lines:
        return "ffprobe gave no reason"
    text = lines[0].replace(ffmpeg_path(path), "").replace(str(path), "").lstrip(": ")
    return text.split("] ", 1)[-1][:200]


def run_ffmpeg(arguments: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run one short ffmpeg command to its end, with nothing on its stdin."""
    return subprocess.run(
        arguments, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
