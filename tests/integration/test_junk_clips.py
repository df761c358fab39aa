"""Clips that make junk end held with advice, by the stages as they are, and never as a model."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.sfm_world import HEIGHT, WIDTH, film, gravel, reconstruct
from worker_agent.protocol import FailureCode
from worker_agent.stages import sfm
from worker_agent.stages.api import StageFailure


def elsewhere(count: int) -> list[Image.Image]:
    """As many places that have nothing in common."""
    rng = np.random.default_rng(1)
    pictures = []
    for _ in range(count):
        cells = rng.integers(0, 255, (HEIGHT // 6, WIDTH // 6, 3)).astype(np.uint8)
        picture = Image.fromarray(cells).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        pictures.append(picture.filter(ImageFilter.GaussianBlur(0.7)))
    return pictures


def test_two_frames_that_match_are_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sfm, "RUNGS", sfm.RUNGS[:1])  # the others try the same once more
    pair, _ = gravel(2, 0.12)
    film(tmp_path / "input" / "a.mp4", [*pair, *elsewhere(6)])
    with pytest.raises(StageFailure) as caught:
        reconstruct(tmp_path, max_features=400)
    failure = caught.value
    assert failure.reason is FailureCode.REGISTRATION_FAILED
    assert failure.advice
    assert not (tmp_path / "sfm" / "model").exists()
    assert not (tmp_path / "output" / "sfm.json").exists()


# What turbid water leaves of a reef: light scattered forward, a veil, the sensor's noise.
VEIL = "gblur=sigma=3,eq=contrast=0.05:brightness=0.05,noise=alls=4:allf=t"


def test_a_reef_in_turbid_water_is_held_before_any_registration(
    tmp_path: Path, real_data: Path
) -> None:
    reef = real_data / "gopro_reef_hero10" / "reef_clip.mp4"
    (tmp_path / "input").mkdir()
    command = ["ffmpeg", "-nostdin", "-v", "error", "-t", "2", "-i", str(reef), "-an", "-vf"]
    command += [f"fps=10,scale=640:-2,{VEIL}", "-preset", "veryfast", "-crf", "18"]
    subprocess.run([*command, "-threads", "1", str(tmp_path / "input" / "a.mp4")], check=True)
    with pytest.raises(StageFailure) as caught:
        reconstruct(tmp_path)
    failure = caught.value
    assert failure.reason is FailureCode.FRAMES_UNUSABLE
    assert "murk" in failure.message and "Leave it out" in failure.advice
    assert not (tmp_path / "sfm").exists()
