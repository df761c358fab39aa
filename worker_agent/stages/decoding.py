"""One ffmpeg pass over one clip: selected, scaled pictures named by their presentation time."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import IO

import ffmpeg

from worker_agent.frames import missing_pictures
from worker_agent.messages import FailureCode
from worker_agent.stages.api import StageFailure
from worker_agent.stages.decoders import Decoder
from worker_agent.stages.ffprobe import COPY_AGAIN, ClipFacts, ffmpeg_path, printable

__all__ = ["Pictures", "Wanted", "decode_clip", "expected_pictures"]

TIME_BASE = 90_000  # ticks a second in the names of the pictures
MAX_DAMAGED_SHARE = 0.01  # of a clip's source frames; each one spoils the rest of its GOP
END_SLACK_S = 1.0  # how far before the clip's end its last picture may lie, beyond one interval

_LEVEL = re.compile(r"\[(panic|fatal|error|warning|info|verbose|debug)\] +")
_TOLD = frozenset({"panic", "fatal", "error", "warning"})
_DECODED = re.compile(r"Input stream .*\(video\): .* (\d+) frames decoded")
_NOT_ON_GPU = re.compile(r"Failed setup for format cuda|hwaccel initialisation returned error")
_DAMAGE = re.compile(r"corrupt decoded frame|Error while decoding stream|Decoding error", re.I)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of one clip: its pictures at `fps`, `size` (width, height) in pixels, by this decoder.
    `advance` hears the seconds decoded so far, `warn` of what went another way."""

    source: Path
    clip: ClipFacts
    fps: float
    size: tuple[int, int]
    decoder: Decoder
    advance: Callable[[float], None]
    warn: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Pictures:
    """(seconds on the clip's timeline, file) in time order; how many pictures of the source were
    decoded for them, how many of these were damaged, and what decoded them in the end."""

    files: list[tuple[float, Path]]
    decoded: int
    damaged: int
    decoder: Decoder


def expected_pictures(clip: ClipFacts, fps: float) -> int:
    """At most one picture an interval, and at most as many as the source shows."""
    return min(clip.frames_estimated, max(1, int(clip.duration_s * fps)))


def decode_clip(wanted: Wanted, scratch: Path) -> Pictures:
    """Decode into JPEGs under `scratch`.

    Where the GPU's decoder fails, the CPU decodes the clip from its start and `warn` is told.
    Raises StageFailure: DECODE_FAILED, INPUT_TRUNCATED, DISK_FULL, TOOL_MISSING.
    """
    if wanted.decoder == "cuda":
        try:
            return _decode(wanted, scratch)
        except StageFailure as failure:
            if failure.reason not in (FailureCode.DECODE_FAILED, FailureCode.INPUT_TRUNCATED):
                raise
            # Perhaps it is the clip's own fault: the CPU's decoder judges that.
            why = failure.evidence["first"] or failure.message
            name = printable(wanted.clip.name)
            wanted.warn(f"clip {name}: the CPU decodes it, as the GPU's decoder failed: {why}")
            for left in scratch.glob("*.jpg"):
                left.unlink()
        wanted = replace(wanted, decoder="cpu")
    return _decode(wanted, scratch)


def _decode(wanted: Wanted, scratch: Path) -> Pictures:
    if shutil.which("ffmpeg") is None:
        raise StageFailure(
            FailureCode.TOOL_MISSING,
            "ffmpeg is not on PATH on this host",
            advice="Install ffmpeg on the host.",
        )
    process = subprocess.Popen(
        _command(wanted),
        cwd=scratch,  # the pattern stays relative: a % in the run directory cannot spoil it
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if process.stdout is None or process.stderr is None:
        raise RuntimeError("ffmpeg was started without pipes")
    complaints = _Complaints(process.stderr)
    complaints.start()
    try:
        for raw in process.stdout:
            key, _, value = raw.decode(errors="replace").strip().partition("=")
            if key == "out_time_us" and value.lstrip("-").isdigit():
                wanted.advance(max(0.0, int(value) / 1e6))
        returncode = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        complaints.join()
    origin = wanted.clip.origin_s
    files = sorted((origin + int(p.stem) / TIME_BASE, p) for p in scratch.glob("*.jpg"))
    _judge(wanted, files, returncode, complaints)
    decoder = wanted.decoder
    if complaints.not_on_gpu:
        decoder = "cpu"  # ffmpeg went on by itself
        name = printable(wanted.clip.name)
        wanted.warn(f"clip {name}: the CPU decodes it: {complaints.not_on_gpu}")
    return Pictures(files, complaints.decoded, complaints.damaged, decoder)


def _command(wanted: Wanted) -> list[str]:
    hardware = {"hwaccel": "cuda"} if wanted.decoder == "cuda" else {}
    # The first picture of each interval; the epsilon keeps a picture that lies on its border.
    slot, before = f"floor(t*{wanted.fps}+1e-4)", f"floor(prev_t*{wanted.fps}+1e-4)"
    video = (
        ffmpeg.input(ffmpeg_path(wanted.source), **hardware)[str(wanted.clip.video_stream)]
        .filter("select", f"isnan(prev_t)+gt({slot},{before})")
        .filter("scale", *wanted.size, flags="area", out_range="full")
        .filter("format", "yuvj420p")
        .filter("settb", f"1/{TIME_BASE}")
    )
    output = video.output(
        "%012d.jpg",
        f="image2",
        vsync="passthrough",  # fps_mode would need ffmpeg 5.1 on every host
        enc_time_base=f"1:{TIME_BASE}",
        frame_pts=1,
        **{"q:v": 2},
    )
    quiet = ("-nostdin", "-nostats", "-v", "repeat+level+verbose", "-progress", "pipe:1")
    program, *rest = ffmpeg.compile(output)
    return [program, *quiet, *rest]


def _judge(
    wanted: Wanted, files: list[tuple[float, Path]], returncode: int, complaints: _Complaints
) -> None:
    clip, fps = wanted.clip, wanted.fps
    name = printable(clip.name)
    if complaints.no_space:
        raise StageFailure(
            FailureCode.DISK_FULL,
            f"no space left on the host while decoding {name}",
            advice="Free space on the host or move its work_dir, then retry the job.",
        )
    evidence = {
        "clip": clip.name,
        "pictures": len(files),
        "expected": expected_pictures(clip, fps),
        "decoded": complaints.decoded,
        "damaged": complaints.damaged,
        "first": complaints.first,
        "ffmpeg": complaints.last,
    }
    if complaints.partial:
        raise StageFailure(
            FailureCode.INPUT_TRUNCATED,
            f"clip {name} ends early: its data stops after {files[-1][0] if files else 0:.1f} of "
            f"{clip.duration_s:.1f} s",
            advice=COPY_AGAIN,
            evidence=evidence,
        )
    if returncode != 0 or not files:
        raise StageFailure(
            FailureCode.DECODE_FAILED,
            f"clip {name} ({clip.codec}) could not be decoded: ffmpeg exit {returncode}, "
            f"{complaints.last or 'no message'}",
            advice=COPY_AGAIN,
            evidence=evidence,
        )
    if complaints.damaged > MAX_DAMAGED_SHARE * clip.frames_estimated:
        raise StageFailure(
            FailureCode.DECODE_FAILED,
            f"clip {name}: {complaints.damaged} of {clip.frames_estimated} pictures are damaged",
            advice=COPY_AGAIN,
            evidence=evidence,
        )
    if missing_pictures(clip.frames_estimated, complaints.decoded):
        raise StageFailure(
            FailureCode.DECODE_FAILED,
            f"clip {name}: {complaints.decoded} of {clip.frames_estimated} pictures could be "
            "decoded",
            advice=COPY_AGAIN,
            evidence=evidence,
        )
    last = files[-1][0]
    end = clip.start_s + clip.duration_s
    if last < end - 1.0 / fps - max(END_SLACK_S, 2.0 / clip.fps):
        raise StageFailure(
            FailureCode.INPUT_TRUNCATED,
            f"clip {name} ends early: its last picture is at {last:.1f} of {end:.1f} s",
            advice=COPY_AGAIN,
            evidence=evidence,
        )


class _Complaints(Thread):
    """Reads ffmpeg's stderr to its end: counts what was decoded and what is damaged, keeps the
    last complaint."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._stream = stream
        self._lines: deque[str] = deque(maxlen=20)
        self.first = ""  # complaint, where the reason of those that follow often stands
        self.damaged = 0
        self.decoded = 0
        self.partial = False
        self.no_space = False
        self.not_on_gpu = ""  # what ffmpeg said when it gave up the GPU's decoder

    def run(self) -> None:
        for raw in self._stream:
            line = raw.decode(errors="replace").strip()
            level = _LEVEL.search(line)
            if _NOT_ON_GPU.search(line):
                self.not_on_gpu = _LEVEL.sub("", line)[:300]
            if counted := _DECODED.search(line):
                self.decoded = max(self.decoded, int(counted[1]))
            if level is None or level[1] not in _TOLD or "deprecated" in line:
                continue
            line = line[: level.start()] + line[level.end() :]
            self.damaged += bool(_DAMAGE.search(line))
            self.partial |= "partial file" in line
            self.no_space |= "No space left on device" in line
            self.first = self.first or line[:300]
            self._lines.append(line)

    @property
    def last(self) -> str:
        return self._lines[-1][:300] if self._lines else ""
