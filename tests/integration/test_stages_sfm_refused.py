"""What ColmapReconstruction refuses, with its reason, and what is registered of a thinner plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from PIL import Image, ImageFilter

from tests.sfm_world import HEIGHT, WIDTH, film, gravel, reconstruct
from worker_agent.protocol import FailureCode
from worker_agent.stages.api import StageFailure


def refused(run_dir: Path, **settings: Any) -> StageFailure:
    with pytest.raises(StageFailure) as caught:
        reconstruct(run_dir, **settings)
    assert "\n" not in caught.value.message
    assert caught.value.advice
    return caught.value


def test_a_plan_with_fewer_frames_registers_every_second_one(tmp_path: Path) -> None:
    pictures, _ = gravel(24, 0.06)
    film(tmp_path / "input" / "GX010001.MP4", pictures)
    reconstruct(tmp_path, frame_stride=2)
    facts = json.loads((tmp_path / "output" / "sfm.json").read_text())
    assert facts["registered"] == facts["frames"] == 12
    model = pycolmap.Reconstruction(str(tmp_path / "sfm" / "model"))
    names = sorted(image.name for image in model.images.values())
    assert names == [f"f{n:06d}.jpg" for n in range(1, 25, 2)]


def test_a_still_camera_has_no_parallax(tmp_path: Path) -> None:
    film(tmp_path / "input" / "a.mp4", gravel(1, 0.0)[0] * 10)
    failure = refused(tmp_path)
    assert failure.reason is FailureCode.NO_PARALLAX
    assert "does not move" in failure.message


def test_a_camera_that_only_turns_has_no_parallax(tmp_path: Path) -> None:
    picture = gravel(1, 0.0)[0][0]
    turned = [picture.rotate(4 * i, resample=Image.Resampling.BICUBIC) for i in range(10)]
    film(tmp_path / "input" / "a.mp4", turned)
    failure = refused(tmp_path)
    assert failure.reason is FailureCode.NO_PARALLAX
    assert "one plane" in failure.message


def test_pictures_of_different_places_do_not_register(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    noise = [
        Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)).filter(
            ImageFilter.GaussianBlur(2)
        )
        for _ in range(8)
    ]
    film(tmp_path / "input" / "a.mp4", noise)
    failure = refused(tmp_path)
    assert failure.reason is FailureCode.REGISTRATION_FAILED
    assert failure.evidence["verified_pairs"] == 0


def test_frames_without_features_are_unusable(tmp_path: Path) -> None:
    blurred = [p.filter(ImageFilter.GaussianBlur(25)) for p in gravel(8, 0.12)[0]]
    ramp = Image.linear_gradient("L").resize((WIDTH, HEIGHT)).convert("RGB")
    film(tmp_path / "input" / "a.mp4", [Image.blend(p, ramp, 0.7) for p in blurred])
    assert refused(tmp_path).reason is FailureCode.FRAMES_UNUSABLE
