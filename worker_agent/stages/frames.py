"""FrameExtraction: one decoding pass per clip into verified JPEG frames, and the telemetry track.

Frames are real source pictures (the first of each 1/fps interval), never duplicates, and carry
their own presentation time, so that variable frame rates, edit lists and start offsets need no
special case. Work goes to a temporary directory that becomes `frames/` only when all of it is
verified: a killed attempt leaves nothing that looks finished.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import ffmpeg
import numpy as np
from PIL import Image, UnidentifiedImageError

from worker_agent.messages import Artifact, FailureCode
from worker_agent.stages.api import (
    Artifacts,
    AttemptSpec,
    Reporter,
    StageFailure,
    artifact,
    write_json,
)
from worker_agent.stages.decoding import decode_clip, expected_pictures
from worker_agent.stages.ffprobe import (
    ClipFacts,
    ffmpeg_path,
    gpmd_packets,
    printable,
    run_ffmpeg,
)

__all__ = ["Frame", "frame_size", "main"]

FLAT_STD = 3.0  # grey levels of 255: below it a frame has no texture at all
MAX_FLAT_SHARE = 0.5
MIN_EXPECTED_SHARE = 0.9  # below it the recording has gaps: told, but no fault of the file


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One verified JPEG of `frames/frames.json`; `time_s` is on its clip's own timeline."""

    name: str
    clip: str
    time_s: float
    bytes: int
    sha256: str


def frame_size(width: int, height: int, want_w: int | None, want_h: int | None) -> tuple[int, int]:
    """Largest even size of the source's shape inside the wanted box; never larger than the source.

    >>> frame_size(1920, 1080, 960, None)
    (960, 540)
    """
    scale = min(1.0, (want_w or width) / width, (want_h or height) / height)
    return max(2, 2 * round(width * scale / 2)), max(2, 2 * round(height * scale / 2))


def main(spec: AttemptSpec, report: Reporter) -> Artifacts:
    """Read `output/validation.json`, write `frames/` and `output/telemetry/`.

    Raises StageFailure: INPUT_MISSING, INPUT_TRUNCATED, DECODE_FAILED, FRAMES_TOO_FEW,
    FRAMES_UNUSABLE, DISK_FULL, TOOL_MISSING.
    """
    run_dir = Path(spec.run_dir)
    config = spec.config["frames"]
    clips = _validated(run_dir)
    width, height = frame_size(clips[0].width, clips[0].height, config["width"], config["height"])
    with _disk_full(run_dir):
        work = _fresh_work(run_dir)
        frames, flat = _extract(run_dir, work, clips, float(config["fps"]), (width, height), report)
        _enough(frames, flat, int(config["min_frames"]), clips)
        telemetry = _copy_telemetry(run_dir, clips, report)
        write_json(
            work / "frames.json",
            {
                "fps": float(config["fps"]),
                "width": width,
                "height": height,
                "frames": [asdict(frame) for frame in frames],
                "flat": flat,
                "verified": True,
            },
        )
        listing = _publish(work, run_dir / "frames") / "frames.json"
    report.progress(1.0, f"{len(frames)} frames verified", frames=len(frames))
    return Artifacts(
        files=(artifact(run_dir, listing, "frames"), *telemetry),
        metrics={
            "frames": len(frames),
            "frame_bytes": sum(frame.bytes for frame in frames),
            "width": width,
            "height": height,
            "flat_frames": flat,
        },
        completed={"total_frames": len(frames)},
    )


def _validated(run_dir: Path) -> list[ClipFacts]:
    path = run_dir / "output" / "validation.json"
    try:
        clips = [ClipFacts.from_dict(item) for item in json.loads(path.read_text())["clips"]]
    except FileNotFoundError:
        raise StageFailure(
            FailureCode.INPUT_MISSING,
            "output/validation.json is missing: the clips were not validated on this host",
            advice="Run the job again from Validation.",
        ) from None
    for clip in clips:
        if not (run_dir / "input" / clip.name).is_file():
            raise StageFailure(
                FailureCode.INPUT_MISSING,
                f"clip {printable(clip.name)} is no longer in the job's input directory",
                advice="Retry the job, so that its inputs are sent again.",
            )
    return clips


def _fresh_work(run_dir: Path) -> Path:
    """An empty directory beside `frames/`; those of killed attempts are removed."""
    for leftover in run_dir.glob(".frames.*"):
        shutil.rmtree(leftover)
    work = run_dir / f".frames.{os.getpid()}"
    work.mkdir()
    return work


def _publish(work: Path, final: Path) -> Path:
    if final.exists():
        shutil.rmtree(final)
    return work.rename(final)


def _extract(
    run_dir: Path,
    work: Path,
    clips: list[ClipFacts],
    fps: float,
    size: tuple[int, int],
    report: Reporter,
) -> tuple[list[Frame], int]:
    """All clips, numbered on continuously, into `work`; returns them and how many are flat."""
    total_s = sum(clip.duration_s for clip in clips)
    done_s = 0.0
    frames: list[Frame] = []
    flat = 0
    for clip in clips:
        name = printable(clip.name)
        before = done_s

        def advance(
            seconds: float, clip: ClipFacts = clip, before: float = before, name: str = name
        ) -> None:
            share = (before + min(seconds, clip.duration_s)) / total_s
            report.progress(0.85 * share, f"decoding {name}")

        scratch = work / "decoding"
        scratch.mkdir()
        pictures = decode_clip(run_dir / "input" / clip.name, clip, scratch, fps, size, advance)
        if pictures.damaged:
            report.warning(
                f"clip {name}: {pictures.damaged} damaged pictures were concealed",
                damaged=pictures.damaged,
            )
        expected = expected_pictures(clip, fps)
        if len(pictures.files) < MIN_EXPECTED_SHARE * expected:
            report.warning(
                f"clip {name}: {len(pictures.files)} frames where {expected} were expected: "
                "the recording has gaps",
                frames=len(pictures.files),
                expected=expected,
            )
        for time_s, picture in pictures.files:
            target = work / f"f{len(frames) + 1:06d}.jpg"
            frame, is_flat = _verify(picture, target.name, clip, time_s, size)
            picture.replace(target)
            frames.append(frame)
            flat += is_flat
        shutil.rmtree(scratch)
        done_s += clip.duration_s
        report.progress(0.95 * done_s / total_s, f"{name} verified", frames=len(frames))
    return frames, flat


def _verify(
    path: Path, name: str, clip: ClipFacts, time_s: float, size: tuple[int, int]
) -> tuple[Frame, bool]:
    """Open the written JPEG again, in full. Returns its record and whether it has no texture."""
    data = path.read_bytes()
    try:
        with Image.open(path) as image:
            image.load()
            found = image.size
            grey = np.asarray(image.convert("L").resize((64, 36)), dtype=np.float32)
    except (OSError, UnidentifiedImageError) as error:
        raise StageFailure(
            FailureCode.DECODE_FAILED,
            f"clip {printable(clip.name)}: the frame at {time_s:.2f} s was not written whole "
            f"({error})",
            advice="Check the host's disk, then retry the job.",
        ) from None
    if found != size:
        raise StageFailure(
            FailureCode.DECODE_FAILED,
            f"clip {printable(clip.name)}: the frame at {time_s:.2f} s is {found[0]}x{found[1]}, "
            f"not {size[0]}x{size[1]}",
            advice="The clip changes its picture size midway; split it there and ingest again.",
        )
    frame = Frame(
        name=name,
        clip=clip.name,
        time_s=round(time_s, 6),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return frame, float(grey.std()) < FLAT_STD


def _enough(frames: list[Frame], flat: int, least: int, clips: list[ClipFacts]) -> None:
    names = ", ".join(printable(clip.name) for clip in clips)
    if len(frames) < least:
        seconds = sum(clip.duration_s for clip in clips)
        raise StageFailure(
            FailureCode.FRAMES_TOO_FEW,
            f"{names}: only {len(frames)} frames in {seconds:.2f} s of video; "
            f"a reconstruction needs {least}",
            advice="Raise frames.fps, or leave so short a clip out.",
            evidence={"frames": len(frames), "min_frames": least, "seconds": seconds},
        )
    if flat > MAX_FLAT_SHARE * len(frames):
        raise StageFailure(
            FailureCode.FRAMES_UNUSABLE,
            f"{names}: {flat} of {len(frames)} frames are black or without any texture",
            advice="Look at the clip: lens cap on, lights off, or open water. Leave it out.",
            evidence={"flat_frames": flat, "frames": len(frames), "flat_below_std": FLAT_STD},
        )


def _copy_telemetry(run_dir: Path, clips: list[ClipFacts], report: Reporter) -> list[Artifact]:
    """GoPro telemetry as raw payloads plus their times, so that the video is not needed for it.

    `output/telemetry/<order>.gpmd` and `<order>.json` ({"packets": [{time_s, duration_s, bytes}]}).
    A track that cannot be read is worth a warning, not a failure: pictures alone reconstruct.
    """
    folder = run_dir / "output" / "telemetry"
    made: list[Artifact] = []
    for clip in clips:
        if clip.gpmd_stream is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        source = run_dir / "input" / clip.name
        target = folder / f"{clip.order}.gpmd"
        stream = ffmpeg.input(ffmpeg_path(source))[str(clip.gpmd_stream)]
        copy = stream.output(ffmpeg_path(target), c="copy", f="data")
        program, *rest = ffmpeg.compile(copy, overwrite_output=True)
        result = run_ffmpeg([program, "-nostdin", "-v", "error", *rest])
        packets = gpmd_packets(source, clip.gpmd_stream) if result.returncode == 0 else []
        whole = bool(packets) and target.stat().st_size == sum(p.bytes for p in packets)
        if not whole:
            target.unlink(missing_ok=True)
            report.warning(
                f"clip {printable(clip.name)}: its telemetry track cannot be read; going on "
                "without GPS and gravity"
            )
            continue
        times = folder / f"{clip.order}.json"
        write_json(times, {"packets": [asdict(packet) for packet in packets]})
        made += [artifact(run_dir, target, "telemetry"), artifact(run_dir, times, "telemetry")]
    return made


@contextmanager
def _disk_full(run_dir: Path) -> Iterator[None]:
    """Turn the operating system's ENOSPC into the stage's own verdict."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StageFailure(
            FailureCode.DISK_FULL,
            f"no space left for frames under {run_dir}",
            advice="Free space on the host or move its work_dir, then retry the job.",
            evidence={"free_bytes": shutil.disk_usage(run_dir).free},
        ) from None
