"""Training, PlyExport and SplatExport on a small scene, as the agent runs them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image

from stitch.gaussians import Gaussians
from stitch.ply import read_ply
from tests.training_world import (
    HEIGHT,
    VIEWS,
    WIDTH,
    WORLD_SCALE,
    WORLD_SHIFT,
    Events,
    distorted_camera,
    linked,
    make_run,
    report_of,
    source,
    spec_for,
    surface,
)
from worker_agent.protocol import FailureCode
from worker_agent.stages import export_ply, export_splat, train
from worker_agent.stages.api import Artifacts, StageFailure
from worker_agent.training.dataset import load_dataset

__all__ = ["source"]


def test_a_scene_is_trained_measured_and_exported(source: Path, tmp_path: Path) -> None:
    run_dir = linked(source, tmp_path / "run")
    events = Events(tmp_path / "events")
    made = train.main(spec_for(run_dir, steps=300), events.reporter)

    report = json.loads((run_dir / "output" / "training.json").read_text())
    assert report["psnr"] > 27.0 and report["ssim"] > 0.9
    assert (report["views_train"], report["views_test"], report["steps"]) == (10, 2, 300)
    assert report["peak_vram_mib"] is None and report["device"].startswith("CPU")
    assert {key: report[key] for key in made.metrics} == made.metrics
    assert [f.kind for f in made.files] == ["gaussians", "training_report", "preview"]
    assert Image.open(run_dir / "output" / "preview.jpg").width >= 2 * 80
    last = events.of_kind("progress")[-1]
    assert (last["fraction"], last["step"], last["gaussians"]) == (1.0, 300, report["gaussians"])

    # The gaussians lie on the ground in the model's own frame, not the normalised one.
    trained = Gaussians.load_npz(run_dir / "train" / "gaussians.npz")
    solid = trained.opacities > 0.0
    local = (trained.means[solid] - WORLD_SHIFT) / WORLD_SCALE
    height, _ = surface(local[:, 0], local[:, 1])
    assert np.median(np.abs(local[:, 2] - height)) < 0.05
    sizes = np.exp(trained.scales[solid]).max(axis=1) / WORLD_SCALE
    assert 0.003 < np.median(sizes) < 0.2

    ply = export_ply.main(spec_for(run_dir, steps=300), events.reporter)
    splat = export_splat.main(spec_for(run_dir, steps=300), events.reporter)
    assert ply.completed == {"ply_path": "output/job1.ply"}
    assert splat.completed == {"splat_path": "output/job1.splat"}
    assert splat.metrics["verdict"] == "pass"
    assert np.array_equal(read_ply(run_dir / "output" / "job1.ply").means, trained.means)
    assert (run_dir / "output" / "job1.splat").stat().st_size == 32 * len(trained)


def test_frames_are_undistorted_onto_the_pinhole_camera(tmp_path: Path) -> None:
    """A bright dot drawn where the distorted camera sees a point ends up where the dataset's
    pinhole camera sees it, at another size."""
    make_run(tmp_path)
    camera = distorted_camera()
    ray = np.array([[0.42, -0.25]])
    dot = camera.img_from_cam(np.append(ray, [[1.0]], axis=1))[0]
    columns, rows = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    bright = 255 * np.exp(-((columns - dot[0]) ** 2 + (rows - dot[1]) ** 2) / (2 * 1.5**2))
    pixels = np.repeat(bright[..., None], 3, -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "frames" / "f000001.jpg", quality=100)
    dataset = load_dataset(tmp_path / "frames", tmp_path / "sfm/model", width=60, test_every=6)
    seen = dataset.images[0].numpy().astype(np.float64).mean(-1)
    rows, columns = np.indices(seen.shape) + 0.5
    seen[seen < 30] = 0.0
    found = np.array([(seen * columns).sum(), (seen * rows).sum()]) / seen.sum()
    matrix = dataset.intrinsics[0].numpy()
    expected = matrix[:2, :2] @ ray[0] + matrix[:2, 2]
    assert dataset.size[0] == 60
    assert np.abs(found - expected).max() < 0.25


def test_every_second_frame_is_every_second_of_the_frames_not_of_the_model(tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "frames" / "f000002.jpg").rename(tmp_path / "frames" / "f000000.jpg")
    model = tmp_path / "sfm" / "model"
    reconstruction = pycolmap.Reconstruction(str(model))
    reconstruction.deregister_frame(2)  # its frame has gone to the front
    reconstruction.write(str(model))
    found = load_dataset(tmp_path / "frames", model, width=60, test_every=6, stride=2)
    assert found.names == tuple(f"f{n:06d}.jpg" for n in range(3, VIEWS + 1, 2))


def test_failures_have_a_code_and_one_line(source: Path, tmp_path: Path) -> None:
    reporter = Events(tmp_path / "events").reporter
    no_model = tmp_path / "no_model"
    no_model.mkdir()
    (no_model / "frames").symlink_to(source / "frames")
    no_frames = tmp_path / "no_frames"
    (no_frames / "frames").mkdir(parents=True)
    (no_frames / "sfm").symlink_to(source / "sfm")
    wrong = spec_for(linked(source, tmp_path / "wrong"), steps=0)
    cases = [
        (spec_for(no_model, steps=9), FailureCode.REGISTRATION_WEAK, "sfm/model"),
        (spec_for(no_frames, steps=9), FailureCode.REGISTRATION_WEAK, "f000001.jpg"),
        (wrong, FailureCode.CONFIG_INVALID, "train.steps is 0"),
    ]
    for spec, reason, named in cases:
        with pytest.raises(StageFailure) as caught:
            train.main(spec, reporter)
        assert caught.value.reason is reason
        assert named in caught.value.message and "\n" not in caught.value.message
        assert caught.value.advice
    with pytest.raises(StageFailure) as caught:
        export_ply.main(spec_for(no_model, steps=9), reporter)
    assert caught.value.reason is FailureCode.INPUT_MISSING


def test_a_loss_that_is_no_number_ends_as_diverged(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker_agent.training import schedule

    monkeypatch.setitem(schedule._RATES, "opacities", float("nan"))
    run_dir = linked(source, tmp_path / "run")
    with pytest.raises(StageFailure) as caught:
        train.main(spec_for(run_dir, steps=100), Events(tmp_path / "events").reporter)
    assert caught.value.reason is FailureCode.TRAINING_DIVERGED
    assert "step" in caught.value.message


def test_a_segment_below_its_thresholds_is_not_done(source: Path, tmp_path: Path) -> None:
    run_dir = linked(source, tmp_path / "run")
    events = Events(tmp_path / "events")
    spec = spec_for(run_dir, steps=30)
    train.main(spec, events.reporter)

    def exported(thresholds: dict[str, Any]) -> Artifacts:
        config = spec.config | {"verdict": thresholds}
        return export_splat.main(dataclasses.replace(spec, config=config), events.reporter)

    warned = exported({"psnr": {"warn": 99.0, "fail": 1.0}})
    assert warned.metrics["verdict"] == "warn"
    assert "PSNR" in events.of_kind("warning")[-1]["message"]
    assert [f.kind for f in warned.files] == ["splat", "verdict"]
    with pytest.raises(StageFailure) as caught:
        exported({"psnr": {"warn": 99.0, "fail": 98.0}})
    assert caught.value.reason is FailureCode.QUALITY_LOW
    assert "below 98" in caught.value.message and caught.value.advice
    told = json.loads((run_dir / "output" / "verdict.json").read_text())
    assert told["verdict"] == "fail" and told["figures"]["gaussians"] > 0


@pytest.mark.parametrize(
    ("settings", "ended"),
    [
        ({"target_ssim": 0.2}, "target"),
        ({"plateau": 0.9}, "plateau"),
        ({"budget_s": 1e-3}, "budget"),
        ({}, "steps"),
    ],
)
def test_training_ends_when_it_is_told_to(
    settings: dict[str, float], ended: str, source: Path, tmp_path: Path
) -> None:
    run_dir = linked(source, tmp_path / "run")
    train.main(spec_for(run_dir, steps=80, **settings), Events(tmp_path / "events").reporter)
    report = report_of(run_dir)
    assert report["ended"] == ended
    # The held-out views are not asked before the last gaussian is there, at 70 % of the steps.
    expected = {"steps": (80, 80), "budget": (1, 1), "target": (57, 70), "plateau": (60, 75)}
    assert expected[ended][0] <= report["steps"] <= expected[ended][1]


def test_what_cameras_expose_differently_is_learned(source: Path, tmp_path: Path) -> None:
    """Brightness goes up and down from frame to frame, by up to a fifth."""
    found = {}
    for exposure in (False, True):
        run_dir = tmp_path / f"exposure-{exposure}"
        (run_dir / "frames").mkdir(parents=True)
        (run_dir / "sfm").symlink_to(source / "sfm")
        for index, path in enumerate(sorted((source / "frames").glob("*.jpg"))):
            gain = 1.0 + 0.2 * np.sin(0.5 * index)
            pixels = np.clip(np.asarray(Image.open(path)) * gain, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(run_dir / "frames" / path.name, quality=98)
        spec = spec_for(run_dir, steps=150, exposure=exposure)
        train.main(spec, Events(tmp_path / f"events-{exposure}").reporter)
        found[exposure] = report_of(run_dir)["psnr"]
    assert found[True] > found[False] + 1.0


def test_what_a_mask_hides_is_not_learned(source: Path, tmp_path: Path) -> None:
    """A white bar lies over the middle of every frame; the mask says so."""
    bar = slice(HEIGHT // 2 - 8, HEIGHT // 2 + 8)
    run_dir = tmp_path / "run"
    masks = run_dir / "sfm" / "masks"
    (run_dir / "frames").mkdir(parents=True)
    masks.mkdir(parents=True)
    (run_dir / "sfm" / "model").symlink_to(source / "sfm" / "model")
    for path in sorted((source / "frames").glob("*.jpg")):
        pixels = np.array(Image.open(path))
        pixels[bar] = 255
        Image.fromarray(pixels).save(run_dir / "frames" / path.name, quality=98)
        mask = np.full((HEIGHT, WIDTH), 255, np.uint8)
        mask[bar] = 0
        Image.fromarray(mask).save(masks / f"{path.name}.png")
    train.main(spec_for(run_dir, steps=200), Events(tmp_path / "events").reporter)
    trained = Gaussians.load_npz(run_dir / "train" / "gaussians.npz")
    white = (trained.sh0 > 0.35 / 0.28).all(axis=1) & (trained.opacities > 0)
    assert white.mean() < 0.01
    assert report_of(run_dir)["psnr"] > 24.0


def test_a_promised_gpu_that_torch_cannot_see_is_said_and_the_cpu_used(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker_agent.training import backend

    monkeypatch.setattr(backend, "cuda_usable", lambda: False)
    run_dir = linked(source, tmp_path / "run")
    events = Events(tmp_path / "events")
    spec = dataclasses.replace(spec_for(run_dir, steps=10), gpu="GPU-1234", gpu_kind="cuda")
    train.main(spec, events.reporter)
    assert "GPU-1234" in events.of_kind("warning")[0]["message"]
    assert json.loads((run_dir / "output" / "training.json").read_text())["device"].startswith(
        "CPU"
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_full_gpu_has_its_own_code(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from worker_agent.training import trainer

    def full(*arguments: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(trainer, "ssim", full)
    run_dir = linked(source, tmp_path / "run")
    with pytest.raises(StageFailure) as caught:
        train.main(spec_for(run_dir, steps=10), Events(tmp_path / "events").reporter)
    assert caught.value.reason is FailureCode.GPU_OUT_OF_MEMORY
    assert "\n" not in caught.value.message and caught.value.evidence["cap"] == 1500
