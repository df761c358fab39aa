"""Films a survey: renders each segment and pipes it to ffmpeg; writes the exact poses beside it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba

from worker_agent.demo.render import render_frame
from worker_agent.demo.seabed import Seabed, make_seabed
from worker_agent.demo.survey import Segment, Survey, Track, track_of

_EVERY = 10  # frames between two progress steps


class FilmError(Exception):
    """The footage could not be written; the text says what to do."""


def film(out: Path, survey: Survey, *, seed: int, threads: int) -> Iterator[dict[str, Any]]:
    """Writes all clips and truths under `out`, yielding progress: {"segment", "frame", "frames"}.

    The last step of a segment also has its "clip" and "truth" paths. Raises FilmError when ffmpeg
    is missing or fails, OSError when `out` cannot be written.
    """
    numba.set_num_threads(max(1, min(threads, numba.config.NUMBA_NUM_THREADS)))
    truth = out / "truth"
    truth.mkdir(parents=True, exist_ok=True)
    seabed = make_seabed(seed, survey.size_m, survey.texel_m)
    for number, segment in enumerate(survey.segments):
        track = track_of(survey, segment, seed)
        clip = out / segment.auv / segment.serial / segment.name / segment.clip
        clip.parent.mkdir(parents=True, exist_ok=True)
        for frame in _write_clip(
            clip, seabed, survey, segment, track, (seed << 24) + (number << 16)
        ):
            yield {"segment": segment.name, "frame": frame, "frames": survey.frames}
        poses = truth / f"{segment.name}.json"
        poses.write_text(json.dumps(truth_of(survey, segment, track)))
        yield {
            "segment": segment.name,
            "frame": survey.frames,
            "frames": survey.frames,
            "clip": str(clip),
            "truth": str(poses),
        }


def _write_clip(
    clip: Path, seabed: Seabed, survey: Survey, segment: Segment, track: Track, noise_seed: int
) -> Iterator[int]:
    camera = segment.camera
    command = [
        "ffmpeg", "-v", "error", "-nostdin", "-y",
        "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{camera.width}x{camera.height}",
        "-r", str(survey.fps), "-i", "pipe:0",
        "-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-pix_fmt", "yuv420p",
        "-threads", "1", "-g", str(survey.fps), "-movflags", "+faststart",
        "-metadata", "creation_time=2026-06-01T08:00:00Z", "-f", "mp4", str(clip),
    ]  # fmt: skip
    try:
        encoder = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    except FileNotFoundError:
        raise FilmError("ffmpeg is not installed; run `make setup`") from None
    assert encoder.stdin is not None and encoder.stderr is not None  # noqa: S101 - both are pipes
    try:
        for i in range(survey.frames):
            picture, _ = render_frame(
                seabed, camera, segment.water, track.rotations[i], track.centres[i], noise_seed + i
            )
            encoder.stdin.write(picture.tobytes())
            if i % _EVERY == 0:
                yield i
        encoder.stdin.close()
    except BrokenPipeError:
        pass  # ffmpeg ended early; its exit status and message say why
    except BaseException:
        encoder.kill()
        raise
    finally:
        message = encoder.stderr.read().decode(errors="replace").strip()
        encoder.stderr.close()
        encoder.wait()
    if encoder.returncode:
        raise FilmError(f"ffmpeg could not write {clip}: {message or encoder.returncode}")


def truth_of(survey: Survey, segment: Segment, track: Track) -> dict[str, Any]:
    """What OUT/truth/<segment>.json holds: the camera, and the exact pose of every frame."""
    camera = segment.camera
    return {
        "segment": segment.name,
        "auv": segment.auv,
        "fps": survey.fps,
        "width": camera.width,
        "height": camera.height,
        "camera_model": "PINHOLE",
        "fx": camera.focal_px,
        "fy": camera.focal_px,
        "cx": camera.width / 2,
        "cy": camera.height / 2,
        "pixel_centre": "+0.5",
        "frames": [
            {"frame": i, "t": t, "R_wc": rotation.tolist(), "C": centre.tolist()}
            for i, (t, rotation, centre) in enumerate(
                zip(track.times_s.tolist(), track.rotations, track.centres, strict=True)
            )
        ],
    }
