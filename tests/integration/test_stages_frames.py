"""What the frames of a clip show: nothing, too little, motion; and which of them are kept."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.video_world import Run, refused, run
from worker_agent.protocol import FailureCode
from worker_agent.stages import frames, validate
from worker_agent.stages.frames import frame_size

__all__ = ["run"]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 1280x180 with structure from 2 to 64 pixels."""
    rng = np.random.default_rng(0)
    total = np.full((192, 1280), 128.0)
    for size in (2, 4, 8, 16, 32, 64):
        cells = rng.standard_normal((192 // size, 1280 // size))
        total += 22 * np.kron(cells, np.ones((size, size)))
    path = tmp_path_factory.mktemp("ground") / "ground.png"
    Image.fromarray(np.clip(total, 0, 255).astype(np.uint8)[:180]).save(path)
    return path


def film(target: Path, ground: Path, seconds: float, filters: str = "", x: str = "20*t") -> bytes:
    """320x180 of the ground at 20 fps, `x` being how far along at t seconds."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-loop", "1", "-framerate", "20"]
    command += ["-t", str(seconds), "-i", str(ground), "-preset", "ultrafast", "-crf", "16"]
    command += ["-vf", ",".join(filter(None, [f"crop=320:180:{x}:0", filters, "format=yuv420p"]))]
    subprocess.run([*command, "-threads", "1", str(target)], check=True)
    return target.read_bytes()


@pytest.mark.parametrize(
    ("filters", "words"),
    [
        ("drawbox=color=black:t=fill", "black or nearly so"),
        ("drawbox=color=white:t=fill", "overexposed"),
        ("eq=contrast=0.03,noise=alls=8:allf=t", "without texture: murk"),
        ("gblur=sigma=8", "blurred"),
    ],
)
def test_frames_that_show_nothing_are_refused_with_the_cause(
    filters: str, words: str, run: Run, ground: Path, tmp_path: Path
) -> None:
    run.add("b.mp4", film(tmp_path / "bad.mp4", ground, 2, filters))
    failure = refused(run, validate, frames)
    assert failure.reason is FailureCode.FRAMES_UNUSABLE
    assert words in failure.message and "Leave it out" in failure.advice
    assert failure.evidence["frames"] == 10
    assert not (run.path / "frames").exists()


def test_turbid_water_that_still_shows_something_is_told(
    run: Run, ground: Path, tmp_path: Path
) -> None:
    run.add("b.mp4", film(tmp_path / "murk.mp4", ground, 2, "eq=contrast=0.05"))
    run.do(validate, frames)
    (warning,) = [e for e in run.events() if e["kind"] == "warning"]
    assert "turbid" in warning["message"]


@pytest.mark.parametrize(
    ("x", "least", "most"),
    [
        ("40*t", 27, 40),  # 12.5 % of the width a second: 8.3 steps of 1.5 % in each of 4 s
        ("6*t", 4, 12),  # 1.9 % a second: what is overdue decides
    ],
)
def test_keyframes_follow_the_motion(
    x: str, least: int, most: int, run: Run, ground: Path, tmp_path: Path
) -> None:
    run.add("a.mp4", film(tmp_path / "m.mp4", ground, 4, x=x))
    settings = {"select": "motion", "motion": 0.015, "fps": 10.0, "min_frames": 2}
    made = run.do(validate, frames, **settings)
    assert made.metrics["candidates"] == 80
    listed = run.json("frames/frames.json")["frames"]
    assert least <= len(listed) <= most
    assert [f["name"] for f in listed] == [f"f{n + 1:06d}.jpg" for n in range(len(listed))]
    for frame in listed:
        data = (run.path / "frames" / frame["name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == frame["sha256"]
    times = [f["time_s"] for f in listed]
    assert min(b - a for a, b in itertools.pairwise(times)) > 0.09
    assert sorted(p.name for p in (run.path / "frames").iterdir() if p.suffix == ".jpg") == [
        f["name"] for f in listed
    ]


def test_a_still_camera_is_told_before_any_registration(
    run: Run, ground: Path, tmp_path: Path
) -> None:
    run.add("a.mp4", film(tmp_path / "s.mp4", ground, 3, x="0"))
    failure = refused(run, validate, frames, select="motion", motion=0.015)
    assert failure.reason is FailureCode.NO_PARALLAX
    assert "does not move" in failure.message


@pytest.mark.parametrize(
    ("source", "wanted", "expected"),
    [
        ((1920, 1080), (960, None), (960, 540)),
        ((5312, 2988), (960, None), (960, 540)),
        ((1920, 1440), (None, 540), (720, 540)),
        ((1920, 1080), (518, 294), (518, 292)),
        ((640, 360), (960, None), (640, 360)),
        ((854, 480), (853, None), (852, 480)),
    ],
)
def test_frame_sizes_keep_the_shape_and_are_even(
    source: tuple[int, int], wanted: tuple[int | None, int | None], expected: tuple[int, int]
) -> None:
    assert frame_size(*source, *wanted) == expected
