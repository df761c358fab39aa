"""What is known beside the frames: a lens that was given, positions of the cameras."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest

from worker_agent.protocol import AttemptSpec
from worker_agent.stages import sfm, sfm_lens
from worker_agent.stages.api import Reporter, StageFailure
from worker_agent.stages.sfm_lens import FocalPrior
from worker_agent.stages.sfm_mapping import Request
from worker_agent.stages.sfm_positions import located

FOCAL = 1280.0
METRES = 10.0  # a unit of the drawn model
POSITION = {"frame": "enu", "sigma_m": None, "source": "navigation"}


@pytest.fixture
def seen() -> Any:
    """Twelve cameras around 150 points, to 0.3 pixels."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig, options.num_frames_per_rig = 1, 1, 12
    options.num_points3D = 150
    options.camera_model_id = pycolmap.CameraModelId.SIMPLE_RADIAL
    options.camera_params = [FOCAL, 512.0, 384.0, 0.015]
    pycolmap.set_random_seed(1)
    model = pycolmap.synthesize_dataset(options)
    rng = np.random.default_rng(0)
    for image in model.images.values():
        for point in image.points2D:
            point.xy = point.xy + rng.normal(0, 0.3, 2)
    return model


def centres(model: Any) -> np.ndarray[Any, Any]:
    images = sorted(model.images.values(), key=lambda image: image.name)
    return np.array([image.projection_center() for image in images])


def records(model: Any, noise_m: float) -> list[dict[str, Any]]:
    """The manifest's, of cameras that knew where they were to so many metres."""
    rng = np.random.default_rng(2)
    images = sorted(model.images.values(), key=lambda image: image.name)
    return [
        {
            "name": image.name,
            "gravity": None,
            "position": {"at": METRES * centre + rng.normal(0, noise_m, 3), **POSITION},
        }
        for image, centre in zip(images, centres(model), strict=True)
    ]


@pytest.mark.parametrize(
    ("given_px", "said"), [(1.005 * FOCAL, "used"), (1.3 * FOCAL, "contradicted")]
)
def test_a_given_focal_length_counts_unless_the_frames_contradict_it(
    seen: Any, given_px: float, said: str
) -> None:
    fit = sfm_lens.fitted(pycolmap, seen, given=FocalPrior(given_px, 0.02), threads=1)
    assert fit.given == said
    camera = next(iter(fit.model.cameras.values()))
    assert camera.mean_focal_length() == pytest.approx(FOCAL, abs=8.0)
    # What was given of its lens is not taken away from it.
    assert camera.model.name == "SIMPLE_RADIAL"


def test_a_given_focal_length_stands_where_frames_say_nothing_of_it(seen: Any) -> None:
    """Seven frames cannot be left out in four blocks of two."""
    for image in sorted(seen.images.values(), key=lambda image: image.name)[7:]:
        seen.deregister_frame(image.frame_id)
    seen.tear_down()
    fit = sfm_lens.fitted(pycolmap, seen, given=FocalPrior(1300.0, 0.02), threads=1)
    assert (fit.given, fit.focal_uncertainty) == ("used", 0.02)
    assert next(iter(fit.model.cameras.values())).mean_focal_length() == pytest.approx(1300.0)


@pytest.mark.parametrize(("noise_m", "used"), [(0.05, True), (6.0, True), (300.0, False)])
def test_positions_count_as_far_as_they_agree(seen: Any, noise_m: float, used: bool) -> None:
    rows = records(seen, noise_m)
    free = sfm_lens.fitted(pycolmap, seen, given=None, threads=1)
    fit = sfm_lens.fitted(
        pycolmap, seen, given=None, threads=1, locate=lambda model: located(pycolmap, model, rows)
    )
    assert fit.positions is used
    # A good model is not bent by them, however far off they are.
    before, after = (found - found.mean(0) for found in (centres(free.model), centres(fit.model)))
    singular = np.linalg.svd(before, compute_uv=False)
    ratio = np.linalg.svd(after, compute_uv=False) / singular
    assert ratio / ratio.mean() == pytest.approx(1.0, abs=2e-3)
    focal = next(iter(fit.model.cameras.values())).mean_focal_length()
    assert focal == pytest.approx(FOCAL, rel=2e-3)


def test_the_lens_of_a_profile_gives_way_to_a_guess(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    climbed: list[tuple[str, str]] = []

    def played(step: str, ordered: Request, tick: Any) -> dict[str, Any]:
        climbed.append((step, ordered.camera["source"]))
        if step == "match":
            return {
                "images": 2, "keypoints_median": 500, "verified_pairs": 40, "motion_share": 0.2,
                "planar_share": 0.5,
            }  # fmt: skip
        return {"candidate": None}

    def camera(source: str) -> dict[str, Any]:
        return {
            "model": "SIMPLE_RADIAL", "width": 64, "height": 48, "params": [60.0, 32.0, 24.0, 0.0],
            "source": source, "prior_focal": source != "guess",
        }  # fmt: skip

    given = camera("profile X") | {"fallback": camera("guess")}
    rows = [{"name": f"f{i}.jpg", "gravity": None} for i in range(2)]
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "manifest.json").write_text(
        json.dumps({"camera": given | {"source_width": 64, "source_height": 48}, "frames": rows})
    )
    config: dict[str, Any] = {
        "max_features": 100, "max_image_size": 64, "overlap": 3, "seed": 0, "threads": 1,
        "min_registered_share": 0.8, "max_reprojection_px": 2.0, "memory_limit_mib": None,
    }  # fmt: skip
    spec = AttemptSpec(
        protocol=1, epoch=1, acquisition="survey", job="survey-a1", attempt=1, stage="",
        run_dir=str(tmp_path), config={"sfm": config}, inputs={"clips": [], "segment": "a1"},
    )  # fmt: skip
    monkeypatch.setattr(sfm, "run_step", played)
    with (tmp_path / "events.jsonl").open("ab") as events, pytest.raises(StageFailure):
        sfm.main(spec, Reporter(events.fileno(), 1))
    rung = ["extract", "match", "map_global", "map_incremental"]
    assert climbed[:4] == [(step, "profile X") for step in rung]
    assert climbed[4:8] == [(step, "guess") for step in rung]
    assert {source for _, source in climbed[8:]} == {"guess"}
