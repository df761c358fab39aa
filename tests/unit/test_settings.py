"""Pipeline and dispatcher settings: defaults, file, environment, and one line per mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dispatcher.errors import ExitCode, SettingsError
from dispatcher.settings import DispatcherSettings, PipelineConfig

# The keys stages read; a change here is a change of every stage.
DEFAULTS = {
    "frames": {
        "select": "fps",
        "fps": 5.0,
        "motion": 0.015,
        "width": 960,
        "height": None,
        "min_frames": 8,
    },
    "sfm": {
        "camera_model": "auto",
        "camera_params": None,
        "lens_mode": None,
        "underwater": True,
        "profiles": [],
        "focal_uncertainty": 0.02,
        "max_features": 3000,
        "max_image_size": 1000,
        "overlap": 10,
        "seed": 0,
        "threads": 2,
        "min_registered_share": 0.8,
        "max_reprojection_px": 2.0,
        "memory_limit_mib": None,
        "patience": 1.0,
        "mask": [],
        "mask_command": [],
    },
    "navigation": {"offset_s": 0.0, "max_gap_s": 3.0, "camera_above_altimeter_m": 0.0},
    "depth": {
        "model": None,
        "output": "disparity",
        "side": 518,
        "mean": [0.485, 0.456, 0.406],
        "deviation": [0.229, 0.224, 0.225],
    },
    "train": {
        "preset": "standard",
        "seed": 0,
        "test_every": 8,
        "checkpoint_every_s": 20.0,
        "ssim_weight": 0.2,
        "strategy": "budget",
        "exposure": False,
        "medium": False,
        "depth_weight": 0.0,
        "plateau": 0.0,
        "target_ssim": 0.0,
        "budget_s": 0.0,
        "lpips_weights": "",
        "cpu": {"width": 320, "steps": 1000, "cap": 30000, "sh_degree": 1, "threads": 2},
        "cuda": {"width": 960, "steps": 7000, "cap": 1000000, "sh_degree": 3},
    },
    "mesh": {"make": False, "width": 480, "voxel": None},
    "verdict": {
        "psnr": {"warn": 22.0, "fail": 15.0},
        "ssim": {"warn": 0.7, "fail": 0.4},
        "lpips": {"warn": None, "fail": None},
        "registered_share": {"warn": 0.95, "fail": 0.5},
        "reprojection_px": {"warn": 1.5, "fail": 4.0},
        "gravity_spread_deg": {"warn": 2.0, "fail": 10.0},
        "turning_error_deg": {"warn": 4.0, "fail": None},
        "drift_m": {"warn": 5.0, "fail": None},
        "gaussians": {"warn": 1000.0, "fail": 100.0},
    },
    "reconstruct": {"backend": "gsplat", "command": [], "lingbot": None, "timeout_s": 14400.0},
    "stitch": {
        **{"ratio": 0.85, "min_inliers": 12, "min_inlier_share": 0.2, "min_hull_share": 0.1},
        **{"prune_floaters": True, "harmonise": False, "aspects": True, "segment_ids": False},
        **{"orthomosaic": True, "tiles": False, "quorum": None, "deadline_h": None},
    },
    "reclaim": {
        "source_videos": "when_verified",
        "frames": "when_verified",
        "features": "when_verified",
        "training": "when_verified",
        "results": "until_stitched",
        "fstrim": "auto",
    },
}


def test_the_defaults_are_what_the_stages_read() -> None:
    assert PipelineConfig.load(environment={}).as_dict() == DEFAULTS
    assert json.loads(json.dumps(PipelineConfig().as_dict())) == DEFAULTS


def test_a_file_overrides_and_the_environment_overrides_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(
        "frames: {fps: 2, width: 640}\nsfm: {camera_params: [500, 480, 270]}\n"
        "train: {cpu: {steps: 50}}\nreclaim: {fstrim: off}\n"
    )
    config = PipelineConfig.load(path, {})
    assert (config.frames.fps, config.frames.width, config.frames.min_frames) == (2, 640, 8)
    assert config.as_dict()["sfm"]["camera_params"] == [500, 480, 270]
    assert (config.train.cpu.steps, config.train.cpu.cap) == (50, 30000)
    assert config.reclaim.fstrim == "off"
    config = PipelineConfig.load(path, {"COSMA_QC_FPS": "7.5"})
    assert (config.frames.fps, config.frames.width) == (7.5, 640)


@pytest.mark.parametrize(
    ("environment", "size"),
    [
        ({"COSMA_QC_IMG_W": "518", "COSMA_QC_IMG_H": "294"}, (518, 294)),
        ({"COSMA_QC_IMG_W": "518"}, (518, None)),
        ({"COSMA_QC_IMG_H": "294"}, (None, 294)),
        ({"COSMA_QC_IMG_H": ""}, (960, None)),
    ],
)
def test_one_side_given_keeps_the_shape_of_the_video(
    environment: dict[str, str], size: tuple[int | None, int | None]
) -> None:
    frames = PipelineConfig.load(environment=environment).frames
    assert (frames.width, frames.height) == size


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("frames: {fsp: 2}", "frames.fsp: unknown key"),
        ("frames: {fps: 0}", "frames.fps: "),
        ("train: {cpu: {steps: many}}", "train.cpu.steps: "),
        ("nothing: 1", "nothing: unknown key"),
        ("- 1", "expected `key: value`"),
        ("frames: [", "not valid YAML"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        PipelineConfig.load(path, {})
    assert said in caught.value.line and str(path) in caught.value.line
    assert "\n" not in caught.value.line
    assert caught.value.exit_code is ExitCode.USAGE


def test_a_missing_file_or_a_bad_variable_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.yaml"):
        PipelineConfig.load(tmp_path / "none.yaml", {})
    with pytest.raises(SettingsError, match="COSMA_QC_FPS"):
        PipelineConfig.load(environment={"COSMA_QC_FPS": "fast"})
    with pytest.raises(SettingsError, match="COSMA_QC_POLL_S"):
        DispatcherSettings.load({"COSMA_QC_POLL_S": "-1"})


def test_dispatcher_settings_take_environment_then_options(tmp_path: Path) -> None:
    plain = DispatcherSettings.load({})
    assert (plain.database, plain.artifacts) == (
        Path("cosma.db"),
        Path.cwd() / "cosma-artifacts",
    )
    environment = {"COSMA_QC_DB": "/x/q.db", "OUTPUT_PATH": "~/out", "COSMA_QC_POLL_S": "0.5"}
    given = DispatcherSettings.load(environment)
    assert (given.database, given.poll_s) == (Path("/x/q.db"), 0.5)
    assert given.artifacts == Path.home() / "out"
    options = DispatcherSettings.load(environment, database=tmp_path / "c.db", artifacts=None)
    assert options.database == tmp_path / "c.db"
    assert options.artifacts == Path.home() / "out"


def test_leases_are_scaled_by_the_environment() -> None:
    assert DispatcherSettings.load({}).lease_scale == 1.0
    assert DispatcherSettings.load({"COSMA_LEASE_SCALE": "0.5"}).lease_scale == 0.5
    with pytest.raises(SettingsError, match="COSMA_LEASE_SCALE"):
        DispatcherSettings.load({"COSMA_LEASE_SCALE": "0.001"})


def test_a_preset_fills_in_what_is_not_said_and_costs_more_than_the_one_before() -> None:
    plans = {
        preset: PipelineConfig.model_validate({"train": {"preset": preset}}).as_dict()["train"]
        for preset in ("preview", "standard", "best")
    }
    for device in ("cpu", "cuda"):
        for key in ("steps", "cap"):
            preview, standard, best = (plan[device][key] for plan in plans.values())
            assert preview < standard < best
    said = {"train": {"preset": "best", "cuda": {"cap": 500_000}}}
    cuda = PipelineConfig.model_validate(said).as_dict()["train"]["cuda"]
    assert (cuda["cap"], cuda["steps"]) == (500_000, plans["best"]["cuda"]["steps"])
