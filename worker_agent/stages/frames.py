"""FrameExtraction: one decoding pass per clip into verified JPEG frames, and the telemetry track.

Frames are real source pictures, never duplicates, and carry their own presentation time, so that
variable frame rates, edit lists and start offsets need no special case. `frames.select: fps` keeps
the first picture of each 1/fps interval; `motion` decodes twice as many and keeps those that
`keyframes` chooses, at most fps a second.

Work goes to a temporary directory that becomes `frames/` only when all of it is verified: a killed
attempt leaves nothing that looks finished.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

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
from worker_agent.stages.decoders import decoder_for, hwaccels
from worker_agent.stages.decoding import Wanted, decode_clip, expected_pictures
from worker_agent.stages.ffprobe import ClipFacts, printable
from worker_agent.stages.frame_quality import (
    ANALYSED_WIDTH,
    F32,
    FrameQuality,
    judge_frames,
    measure,
    summary,
    warnings,
)
from worker_agent.stages.inputs import logs_of
from worker_agent.stages.keyframes import STILL, Look, Selection
from worker_agent.stages.telemetry import copy_telemetry

__all__ = ["Frame", "frame_size", "main"]

CANDIDATES = 2.0  # times fps are decoded for a selection by motion
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
        kept = _extract(spec, work, clips, (width, height), report)
        _enough(kept, int(config["min_frames"]), clips)
        for line in warnings(kept.qualities):
            report.warning(line)
        telemetry = copy_telemetry(run_dir, clips, logs_of(spec).values(), report)
        write_json(
            work / "frames.json",
            {
                "fps": float(config["fps"]),
                "width": width,
                "height": height,
                "clips": kept.clips,
                "frames": [asdict(frame) for frame in kept.frames],
                "verified": True,
            },
        )
        quality = _write_quality(run_dir, kept)
        listing = _publish(work, run_dir / "frames") / "frames.json"
    count = len(kept.frames)
    report.progress(1.0, f"{count} frames verified", frames=count)
    return Artifacts(
        files=(artifact(run_dir, listing, "frames"), quality, *telemetry),
        metrics={
            "frames": count,
            "frame_bytes": sum(frame.bytes for frame in kept.frames),
            "width": width,
            "height": height,
            "candidates": kept.candidates,
            "decoded_on_gpu": sum(clip["decoder"] == "cuda" for clip in kept.clips),
            **summary(kept.qualities),
        },
        completed={"total_frames": count},
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


@dataclass(slots=True)
class _Kept:
    """The frames so far, what each shows, and how many pictures were looked at for them."""

    frames: list[Frame]
    qualities: list[FrameQuality]
    candidates: int = 0
    clips: list[dict[str, Any]] = field(default_factory=list)  # what was decoded of each
    furthest: float = 0.0  # largest motion against a keyframe, where that is measured


def _extract(
    spec: AttemptSpec,
    work: Path,
    clips: list[ClipFacts],
    size: tuple[int, int],
    report: Reporter,
) -> _Kept:
    """All clips, numbered on continuously, into `work`."""
    config, inputs = spec.config["frames"], Path(spec.run_dir) / "input"
    gpu, offered = spec.gpu, hwaccels(spec)
    fps = float(config["fps"])
    by_motion = config.get("select", "fps") == "motion"
    rate = CANDIDATES * fps if by_motion else fps
    total_s = sum(clip.duration_s for clip in clips)
    done_s = 0.0
    kept = _Kept([], [])
    for clip in clips:
        name = printable(clip.name)
        before = done_s

        def advance(
            seconds: float, clip: ClipFacts = clip, before: float = before, name: str = name
        ) -> None:
            share = (before + min(seconds, clip.duration_s)) / total_s
            report.progress(0.7 * share, f"decoding {name}")

        scratch = work / "decoding"
        scratch.mkdir()
        decoder = decoder_for(clip.codec, spec.gpu_kind, gpu, offered)
        source = inputs / clip.name
        wanted = Wanted(source, clip, rate, size, decoder, advance, report.warning)
        pictures = decode_clip(wanted, scratch)
        if pictures.decoder != decoder:
            gpu = None  # nor the clips that follow
        kept.clips.append(
            {
                "name": clip.name,
                "shown": clip.frames_estimated,
                "decoded": pictures.decoded,
                "decoder": pictures.decoder,
            }
        )
        if pictures.damaged:
            report.warning(
                f"clip {name}: {pictures.damaged} damaged pictures were concealed",
                damaged=pictures.damaged,
            )
        expected = expected_pictures(clip, rate)
        if len(pictures.files) < MIN_EXPECTED_SHARE * expected:
            report.warning(
                f"clip {name}: {len(pictures.files)} frames where {expected} were expected: "
                "the recording has gaps",
                frames=len(pictures.files),
                expected=expected,
            )
        # A clip starts anew: what lies between two chapters or clips is not known.
        selection = Selection(float(config["motion"]), 1 / fps) if by_motion else None
        _keep(pictures.files, selection, clip, work, size, kept)
        shutil.rmtree(scratch)
        done_s += clip.duration_s
        report.progress(0.95 * done_s / total_s, f"{name} verified", frames=len(kept.frames))
    return kept


def _keep(
    pictures: list[tuple[float, Path]],
    selection: Selection | None,
    clip: ClipFacts,
    work: Path,
    size: tuple[int, int],
    kept: _Kept,
) -> None:
    """Verify every picture; those that are chosen move to `work` under the next number."""
    waiting: dict[int, tuple[Frame, FrameQuality, Path]] = {}

    def take(chosen: list[int]) -> None:
        for index in chosen:
            frame, quality, path = waiting[index]
            name = f"f{len(kept.frames) + 1:06d}.jpg"
            path.replace(work / name)
            kept.frames.append(replace(frame, name=name))
            kept.qualities.append(quality)
        if chosen:
            for index in [index for index in waiting if index <= chosen[-1]]:
                del waiting[index]

    for index, (time_s, path) in enumerate(pictures):
        frame, grey = _verify(path, clip, time_s, size)
        quality = measure(grey)
        waiting[index] = frame, quality, path
        if selection is None:
            take([index])
        else:
            take(selection.add(Look(index, time_s, grey, quality.sharpness)))
    if selection is not None:
        take(selection.end())
        kept.furthest = max(kept.furthest, selection.furthest)
    kept.candidates += len(pictures)


def _verify(path: Path, clip: ClipFacts, time_s: float, size: tuple[int, int]) -> tuple[Frame, F32]:
    """Open the written JPEG again, in full. Returns its record, still without a name, and the
    picture in grey, reduced to about ANALYSED_WIDTH."""
    data = path.read_bytes()
    try:
        with Image.open(path) as image:
            image.load()
            found = image.size
            factor = max(1, round(image.width / ANALYSED_WIDTH))
            grey = np.asarray(image.convert("L").reduce(factor), dtype=np.float32)
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
        name="",
        clip=clip.name,
        time_s=round(time_s, 6),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return frame, grey


def _enough(kept: _Kept, least: int, clips: list[ClipFacts]) -> None:
    names = ", ".join(printable(clip.name) for clip in clips)
    found = len(kept.frames)
    seconds = sum(clip.duration_s for clip in clips)
    evidence = {
        "frames": found,
        "min_frames": least,
        "seconds": seconds,
        "candidates": kept.candidates,
    }
    if found < least <= kept.candidates and kept.furthest < STILL:
        raise StageFailure(
            FailureCode.NO_PARALLAX,
            f"{names}: the camera does not move: in {seconds:.2f} s the picture shifts by at most "
            f"{100 * kept.furthest:.2f} % of its width",
            advice="A still camera cannot be reconstructed; leave the clip out.",
            evidence=evidence,
        )
    if found < least:
        raise StageFailure(
            FailureCode.FRAMES_TOO_FEW,
            f"{names}: only {found} frames in {seconds:.2f} s of video; "
            f"a reconstruction needs {least}",
            advice="Raise frames.fps, or leave so short a clip out.",
            evidence=evidence,
        )
    unusable = judge_frames(kept.qualities, names)
    if unusable is not None:
        raise StageFailure(
            unusable.reason, unusable.message, advice=unusable.advice, evidence=unusable.evidence
        )


def _write_quality(run_dir: Path, kept: _Kept) -> Artifact:
    """`output/frame_quality.json`: medians, and for each frame what `frame_quality` measures."""
    target = run_dir / "output" / "frame_quality.json"
    rows = [
        {"name": frame.name, **asdict(quality), "flaw": quality.flaw}
        for frame, quality in zip(kept.frames, kept.qualities, strict=True)
    ]
    write_json(target, {**summary(kept.qualities), "frames": rows})
    return artifact(run_dir, target, "frame_quality")


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
