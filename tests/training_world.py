"""A small scene with known geometry, as FrameExtraction and ColmapReconstruction leave it: a bumpy
textured ground seen by a row of cameras with lens distortion."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pycolmap
import pytest
from PIL import Image

from worker_agent.protocol import AttemptSpec
from worker_agent.stages.api import Reporter

VIEWS, WIDTH, HEIGHT = 12, 96, 64
WORLD_SCALE, WORLD_SHIFT = 7.0, np.array([100.0, -40.0, 15.0])  # the model is far from the origin
F64 = npt.NDArray[np.float64]


def surface(x: F64, y: F64) -> tuple[F64, F64]:
    """(height, colour (..., 3)) of the ground."""
    height = 0.1 * np.sin(2.1 * x) * np.cos(1.7 * y)
    tone = [np.sin(5 * x + k) * np.cos(4 * y - k) + 0.5 * np.sin(11 * x * y + k) for k in range(3)]
    return height, np.clip(0.5 + 0.25 * np.stack(tone, -1), 0, 1)


def distorted_camera() -> pycolmap.Camera:
    return pycolmap.Camera(
        model="SIMPLE_RADIAL",
        width=WIDTH,
        height=HEIGHT,
        params=[70.0, WIDTH / 2, HEIGHT / 2, 0.08],
        camera_id=1,
    )


def photograph(camera: pycolmap.Camera, centre: F64) -> npt.NDArray[np.uint8]:
    """Ray cast straight down (x right, y down in the image = -y of the world, z down)."""
    columns, rows = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    rays = camera.cam_from_img(np.stack([columns.ravel(), rows.ravel()], -1))
    depth = np.full(len(rays), centre[2])
    for _ in range(8):
        x, y = centre[0] + rays[:, 0] * depth, centre[1] - rays[:, 1] * depth
        height, color = surface(x, y)
        depth = centre[2] - height
    return (color.reshape(HEIGHT, WIDTH, 3) * 255 + 0.5).astype(np.uint8)


def make_run(run_dir: Path) -> None:
    """frames/ and sfm/model/ of a run directory."""
    frames, model = run_dir / "frames", run_dir / "sfm" / "model"
    frames.mkdir(parents=True)
    model.mkdir(parents=True)
    camera = distorted_camera()
    reconstruction = pycolmap.Reconstruction()
    reconstruction.add_camera_with_trivial_rig(camera)
    down = np.diag([1.0, -1.0, -1.0])
    for view in range(VIEWS):
        centre = np.array([-0.9 + 1.8 * view / (VIEWS - 1), 0.12 * np.sin(view), 1.5])
        name = f"f{view + 1:06d}.jpg"
        Image.fromarray(photograph(camera, centre)).save(frames / name, quality=98)
        world = WORLD_SCALE * centre + WORLD_SHIFT
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(down), -down @ world)
        image = pycolmap.Image(name=name, camera_id=1, image_id=view + 1)
        reconstruction.add_image_with_trivial_frame(image, pose)
    generator = np.random.default_rng(0)
    x, y = generator.uniform(-2.0, 2.0, 900), generator.uniform(-1.0, 1.0, 900)
    height, color = surface(x, y)
    for xyz, rgb in zip(np.stack([x, y, height], -1), color, strict=True):
        reconstruction.add_point3D(
            WORLD_SCALE * xyz + WORLD_SHIFT,
            pycolmap.Track(),
            (rgb * 255).astype(np.uint8),
        )
    reconstruction.write(str(model))


def spec_for(
    run_dir: Path, *, steps: int, checkpoint_every_s: float = 60.0, **train: Any
) -> AttemptSpec:
    config: dict[str, Any] = {
        "train": {
            "seed": 1,
            "test_every": 6,
            "checkpoint_every_s": checkpoint_every_s,
            "ssim_weight": 0.2,
            "cpu": {"width": 96, "steps": steps, "cap": 1500, "sh_degree": 1, "threads": 2},
            **train,
        }
    }
    return AttemptSpec(
        protocol=1,
        epoch=1,
        acquisition="survey",
        job="job1",
        attempt=1,
        stage="Training",
        run_dir=str(run_dir),
        gpu="CPU-test",
        config=config,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("source")
    make_run(run_dir)
    return run_dir


def linked(source: Path, run_dir: Path) -> Path:
    """A run directory of its own with the frames and model of `source`."""
    run_dir.mkdir()
    (run_dir / "frames").symlink_to(source / "frames")
    (run_dir / "sfm").symlink_to(source / "sfm")
    return run_dir


class Events:
    """A Reporter and what it has written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.reporter = Reporter(os.open(path, os.O_WRONLY | os.O_CREAT), 1, interval_s=0.0)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        events = [json.loads(line) for line in self._path.read_text().splitlines()]
        return [event for event in events if event["kind"] == kind]


def report_of(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "output" / "training.json").read_text())
    return found
