"""lingbot-map as a small program of its shape: loads, infers, and opens a viewer for ever."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stitch.ply import PlyFile
from tests.integration.test_training_command import is_there
from tests.training_world import Events
from worker_agent.checkpoint import Checkpoint
from worker_agent.protocol import AttemptSpec, FailureCode
from worker_agent.stages.__main__ import run
from worker_agent.stages.api import StageFailure
from worker_agent.stages.point_cloud import read_any
from worker_agent.stages.train_lingbot import by_lingbot

FRAMES, HEIGHT, WIDTH = 20, 6, 10
# As demo.py of the program: its options, its folder of images, what it gives to its viewer.
DEMO = """
import argparse, glob, os, subprocess, sys
import numpy as np
from lingbot_map.utils.geometry import unproject_depth_map_to_point_map
parser = argparse.ArgumentParser()
for name in ("image_folder", "model_path", "mode", "export_ply"):
    parser.add_argument(f"--{name}")
for name, value in (("stride", 1), ("window_size", 64), ("port", 8080), ("downsample_factor", 10)):
    parser.add_argument(f"--{name}", type=int, default=value)
parser.add_argument("--conf_threshold", type=float, default=1.5)
args = parser.parse_args()
assert args.mode == "windowed" and os.path.getsize(args.model_path)
paths = sorted(glob.glob(os.path.join(args.image_folder, "*.jpg")))[::args.stride]
count = len(paths)
print(f"Loading {count} images...", flush=True)
if os.environ.get("FAILS"):
    raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
turned = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], float)
poses = np.zeros((count, 3, 4))
poses[:, :, :3], poses[:, 0, 3] = turned, np.arange(count)
shown = {
    "depth": np.full((count, HIGH, WIDE, 1), 2.0, np.float32),
    "depth_conf": np.repeat(np.arange(WIDE)[None, None], HIGH, 1).repeat(count, 0) / 4.0,
    "extrinsic": poses,
    "intrinsic": np.repeat([[[5.0, 0, 5], [0, 5, 3], [0, 0, 1]]], count, 0),
    "images": np.full((count, 3, HIGH, WIDE), 0.5, np.float32),
}
if args.export_ply:
    given = [shown[name] for name in ("depth", "extrinsic", "intrinsic")]
    points = unproject_depth_map_to_point_map(*given)
    points = points.reshape(-1, 3).astype("<f4")
    with open(args.export_ply, "wb") as ply:
        ply.write(b"ply\\nformat binary_little_endian 1.0\\nelement vertex %d\\n" % len(points))
        ply.write(b"".join(b"property float %s\\n" % axis for axis in (b"x", b"y", b"z")))
        ply.write(b"end_header\\n" + points[:7].tobytes())
        ply.flush()
        subprocess.run(["sleep", "1.5"])  # longer than it takes to look twice
        ply.write(points[7:].tobytes())
try:
    from lingbot_map.vis import PointCloudViewer
    viewer = PointCloudViewer(
        pred_dict=shown, port=args.port, vis_threshold=args.conf_threshold,
        downsample_factor=args.downsample_factor, point_size=0.00001, mask_sky=False,
        image_folder=args.image_folder, sky_mask_dir=None, sky_mask_visualization_dir=None,
    )
    viewer.run()
except ImportError:
    print("viser not installed")
""".replace("HIGH", str(HEIGHT)).replace("WIDE", str(WIDTH))
# The geometry of its own; (S, 3, 4) of cameras from the world.
GEOMETRY = """
import numpy as np
def unproject_depth_map_to_point_map(depth, extrinsic, intrinsic):
    worlds = []
    for z, pose, k in zip(depth[..., 0], extrinsic, intrinsic):
        v, u = np.indices(z.shape)
        local = np.stack([(u - k[0, 2]) / k[0, 0] * z, (v - k[1, 2]) / k[1, 1] * z, z], -1)
        worlds.append((local - pose[:, 3]) @ pose[:, :3])
    return np.stack(worlds)
"""
VIEWER = """
import os, signal, subprocess, sys, time
class PointCloudViewer:
    def __init__(self, **wanted):
        self.server = subprocess.Popen([sys.executable, "-c", SERVER])
        with open(os.environ["SEEN"], "w") as told:
            told.write(f"{os.getpid()} {self.server.pid}")
    def run(self):
        while True:
            time.sleep(1)
SERVER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lingbot")
    (root / "lingbot_map" / "utils").mkdir(parents=True)
    for package in ("lingbot_map", "lingbot_map/utils"):
        (root / package / "__init__.py").touch()
    (root / "lingbot_map" / "utils" / "geometry.py").write_text(GEOMETRY)
    (root / "lingbot_map" / "vis.py").write_text(VIEWER)
    (root / "demo.py").write_text(DEMO)
    (root / "long.pt").write_bytes(b"weights")
    return root


def spec_for(root: Path, program: Path, **lingbot: Any) -> AttemptSpec:
    (root / "frames").mkdir(parents=True)
    for number in range(FRAMES):
        Image.new("RGB", (64, 36)).save(root / "frames" / f"f{number + 1:06d}.jpg")
    settings = {
        "demo": str(program / "demo.py"), "model": str(program / "long.pt"),
        "python": sys.executable, "window": 64, "options": [], "base_mib": 10.0, "frame_mib": 1.0,
    }  # fmt: skip
    return AttemptSpec(
        protocol=1, epoch=1, acquisition="survey", job="j1", attempt=1, stage="Training",
        run_dir=str(root),
        config={
            "sfm": {}, "train": {}, "verdict": {},
            "reconstruct": {
                "backend": "lingbot-map", "lingbot": settings | lingbot, "timeout_s": 120.0,
            },
        },
    )  # fmt: skip


def expected(count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(count, H, W, 3): each camera turned about its axis and one unit after the other."""
    v, u = np.indices((HEIGHT, WIDTH))
    local = np.stack([(u - 5) / 5 * 2.0, (v - 3) / 5 * 2.0, np.full(u.shape, 2.0)], -1)
    turned = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    return np.stack([(local - [at, 0, 0]) @ turned for at in range(count)])


@pytest.mark.parametrize("writes", [True, False], ids=["its own PLY", "only a viewer"])
def test_its_cloud_is_taken_and_nothing_is_left_running(
    writes: bool, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    monkeypatch.setenv("SEEN", str(seen))
    monkeypatch.setattr("worker_agent.stages.external_program.GRACE_S", 1.0)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # as the supervisor sets it for the stage
    options = ["--export_ply", "{output}"] if writes else ["--downsample_factor", "2"]
    spec = spec_for(tmp_path / "run", program, options=options)
    events = Events(tmp_path / "events")
    (tmp_path / "run" / "output").mkdir()
    (tmp_path / "run" / "output" / "registration.npz").write_bytes(b"of an earlier model")
    outcomes = {
        stage: run(dataclasses.replace(spec, stage=stage), events.reporter)
        for stage in ("ColmapReconstruction", "Training", "PlyExport", "SplatExport")
    }
    assert {stage: one.message for stage, one in outcomes.items() if not one.ok} == {}

    everything = expected(FRAMES)
    if writes:
        points = everything.reshape(-1, 3)
    else:  # of each frame, every second of those that are surer than 1.5
        sure = [frame[:, 7:].reshape(-1, 3) for frame in everything]
        points = np.concatenate([frame[::2] for frame in sure])
    ply = PlyFile.open(tmp_path / "run" / "output" / "j1.ply").read()
    assert ply.means == pytest.approx(points, abs=1e-5)
    files = [file.kind for one in outcomes.values() for file in one.artifacts]
    assert files == ["gaussians", "training_report", "ply", "splat", "verdict"]
    assert not (tmp_path / "run" / "output" / "registration.npz").exists()
    verdict = json.loads((tmp_path / "run" / "output" / "verdict.json").read_text())
    assert verdict["verdict"] == "pass" and verdict["figures"]["psnr"] is None
    assert "ColmapReconstruction" in Checkpoint.load(tmp_path / "run", "j1").stage_hashes
    assert seen.exists() == writes
    if writes:
        assert not any(is_there(int(pid)) for pid in seen.read_text().split())


def test_a_host_with_little_ram_gives_it_fewer_frames(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker_agent.stages.train_lingbot.memory_mib", lambda: (64, 25))
    events = Events(tmp_path / "events")
    options = ["--downsample_factor", "1", "--conf_threshold", "-1"]
    spec = spec_for(tmp_path / "run", program, options=options)
    output = by_lingbot(spec, events.reporter)
    assert len(read_any(output)) == 10 * HEIGHT * WIDTH
    (warning,) = events.of_kind("warning")
    assert "one of every 2 of 20 frames" in warning["message"]


@pytest.mark.parametrize(
    ("settings", "environment", "reason", "words"),
    [
        ({}, {"FAILS": "1"}, FailureCode.GPU_OUT_OF_MEMORY, "Tried to allocate"),
        ({"options": ["--no_such"]}, {}, FailureCode.STAGE_CRASHED, "no_such"),
        ({"model": "/none/such.pt"}, {}, FailureCode.TOOL_MISSING, "/none/such.pt"),
        ({"python": "/none/python"}, {}, FailureCode.TOOL_MISSING, "/none/python"),
        ({"base_mib": 1e9}, {}, FailureCode.OUT_OF_MEMORY, "MiB of RAM for 8 frames"),
    ],
)
def test_what_is_wrong_is_said(
    settings: dict[str, Any],
    environment: dict[str, str],
    reason: FailureCode,
    words: str,
    program: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    spec = spec_for(tmp_path / "run", program, **settings)
    with pytest.raises(StageFailure) as caught:
        by_lingbot(spec, Events(tmp_path / "events").reporter)
    assert caught.value.reason is reason, caught.value.message
    assert words in caught.value.message and "\n" not in caught.value.message
    assert caught.value.advice
