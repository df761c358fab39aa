"""The mesh of a trained synthetic seabed against the ground it was filmed over, in centimetres.

A camera with known poses swims two lines over ground of the demo's kind, in clear water; trained on
the CPU, then meshed as the PlyExport stage does. Needs Open3D (extra `mesh`).

error_cm: |height of a vertex - height of the ground under it|, of all vertices, median and .9
quantile. covered_share: of a grid of 2 cm over the ground that at least three views see, cells with
a vertex within 3 cm. depth_error_cm: the same for the depth that is rendered, on training views.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pycolmap
from PIL import Image
from scipy.spatial import cKDTree

from bench.results import Result, parser, show
from dispatcher.settings import PipelineConfig
from worker_agent.demo.render import Camera, Water, render_frame
from worker_agent.demo.seabed import Seabed, make_seabed
from worker_agent.protocol import AttemptSpec
from worker_agent.stages.api import Artifacts, Reporter
from worker_agent.stages.mesh import MESH, open3d_for, with_mesh
from worker_agent.training.backend import cpu_backend
from worker_agent.training.dataset import Dataset, load_dataset
from worker_agent.training.depth_prior import expected_depth
from worker_agent.training.gaussians import to_world
from worker_agent.training.settings import TrainSettings
from worker_agent.training.trainer import Trainer

F64 = npt.NDArray[np.float64]
SIZE_M = (3.6, 2.8)
CAMERA = Camera(width=240, height=160, hfov_deg=70.0)
CLEAR = Water(attenuation=(0.0, 0.0, 0.0), veil=(0.0, 0.0, 0.0), gain=(0.5, 0.5, 0.5))
ALTITUDE_M, VIEWS_A_LINE, LINES = 1.3, 12, (1.1, 1.7)
POINTS = 4000
MAX_ERROR_CM = 2.0


def filmed(root: Path, seabed: Seabed) -> list[F64]:
    """frames/ and sfm/model/ with the true poses; the ground points (N, 3) that each view sees."""
    (root / "frames").mkdir(parents=True)
    (root / "sfm" / "model").mkdir(parents=True)
    reconstruction = pycolmap.Reconstruction()
    focal = CAMERA.focal_px
    reconstruction.add_camera_with_trivial_rig(
        pycolmap.Camera(
            model="PINHOLE", width=CAMERA.width, height=CAMERA.height, camera_id=1,
            params=[focal, focal, CAMERA.width / 2, CAMERA.height / 2],
        )
    )  # fmt: skip
    v, u = np.mgrid[: CAMERA.height, : CAMERA.width] + 0.5
    rays = np.stack(
        [(u - CAMERA.width / 2) / focal, (v - CAMERA.height / 2) / focal, np.ones_like(u)], -1
    )
    seen: list[F64] = []
    for line, y in enumerate(LINES):
        for step in range(VIEWS_A_LINE):
            number = line * VIEWS_A_LINE + step + 1
            tilt = 0.25 * np.sin(1.3 * number)
            down = np.array([[1.0, 0, 0], [0, -np.cos(tilt), np.sin(tilt)],
                             [0, -np.sin(tilt), -np.cos(tilt)]]).T  # fmt: skip
            centre = np.array([0.9 + 1.8 * step / (VIEWS_A_LINE - 1), y, ALTITUDE_M])
            picture, depth = render_frame(seabed, CAMERA, CLEAR, down, centre, number)
            name = f"f{number:06d}.jpg"
            Image.fromarray(picture).save(root / "frames" / name, quality=96)
            pose = pycolmap.Rigid3d(pycolmap.Rotation3d(down.T), -down.T @ centre)
            reconstruction.add_image_with_trivial_frame(
                pycolmap.Image(name=name, camera_id=1, image_id=number), pose
            )
            seen.append((rays * depth[..., None])[depth > 0] @ down.T + centre)
    generator = np.random.default_rng(0)
    ground = np.concatenate(seen)
    for point in ground[generator.choice(len(ground), POINTS, replace=False)]:
        noisy = point + generator.normal(0, 0.003, 3)  # as SfM finds them
        reconstruction.add_point3D(noisy, pycolmap.Track(), np.full(3, 128, np.uint8))
    reconstruction.write(str(root / "sfm" / "model"))
    return seen


def heights(seabed: Seabed, places: F64) -> F64:
    """(N,) of the ground under (N, 2); NaN beside it."""
    found = np.full(len(places), np.nan)
    for at, (x, y) in enumerate(places):
        try:
            found[at] = seabed.height_at(float(x), float(y))
        except IndexError:
            continue
    return found


def depth_error_cm(trainer: Trainer, dataset: Dataset, seen: list[F64]) -> float:
    """Median over the pixels of some training views, all of which show ground."""
    apart = []
    for view in dataset.train[::6]:
        pose, matrix = dataset.viewmats[view], dataset.intrinsics[view]
        depth, _ = expected_depth(cpu_backend(1), trainer.parameters, pose, matrix, dataset.size)
        centre = np.linalg.inv(pose.double().numpy())
        true = (dataset.normalisation.apply(seen[view]) - centre[:3, 3]) @ centre[:3, 2]
        if len(true) == depth.numel():
            told = depth.detach().double().numpy().ravel()
            apart.append(np.abs(told - true) / dataset.normalisation.scale)
    return 100 * float(np.median(np.concatenate(apart)))


def meshed(root: Path, steps: int, cap: int) -> list[Result]:
    seabed = make_seabed(3, SIZE_M, 0.008)
    seen = filmed(root, seabed)
    config = PipelineConfig().as_dict()
    config["train"]["cpu"] |= {"width": 240, "steps": steps, "cap": cap, "threads": 1}
    config["mesh"] |= {"make": True, "width": 240}
    settings = TrainSettings.from_config(config["train"], "cpu")
    dataset = load_dataset(root / "frames", root / "sfm" / "model", width=240, test_every=8)
    trainer = Trainer(
        dataset, settings, cpu_backend(1), checkpoint=root / "checkpoint.pt",
        warn=lambda line: print(line, file=sys.stderr),
    )  # fmt: skip
    trained = trainer.run(lambda _: None)
    spec = AttemptSpec(
        protocol=1, epoch=1, acquisition="bench", job="bench", attempt=1, stage="PlyExport",
        run_dir=str(root), config=config,
    )  # fmt: skip
    open3d = open3d_for(spec)
    gaussians = to_world(trainer.parameters, dataset.normalisation)
    events = os.open(root / "events.jsonl", os.O_WRONLY | os.O_CREAT)
    made = with_mesh(Artifacts(files=()), open3d, gaussians, spec, Reporter(events, 1))
    os.close(events)
    found = open3d.io.read_triangle_mesh(str(root / MESH)) if open3d is not None else None
    vertices = np.asarray(found.vertices) if found is not None else np.zeros((0, 3))
    under = heights(seabed, vertices[:, :2])
    error = 100 * np.abs(vertices[:, 2] - under)
    error = np.where(np.isfinite(error), error, 100.0)  # beside the ground
    views = np.zeros(tuple(int(side / 0.02) + 2 for side in SIZE_M), int)
    for ground in seen:
        views[tuple((np.unique((ground[:, :2] / 0.02).astype(int), axis=0)).T)] += 1
    cells = (np.argwhere(views >= 3) + 0.5) * 0.02
    near = cKDTree(vertices[:, :2]).query(cells)[0] < 0.03
    return [
        Result(name="psnr", value=trained.quality.psnr, unit="dB", better="higher"),
        Result(
            name="depth_error_cm", value=depth_error_cm(trainer, dataset, seen), unit="cm",
            better="lower", target=MAX_ERROR_CM,
        ),
        Result(
            name="error_cm_median", value=float(np.median(error)), unit="cm", better="lower",
            target=MAX_ERROR_CM,
        ),
        Result(
            name="error_cm_q90", value=float(np.quantile(error, 0.9)), unit="cm", better="lower"
        ),
        Result(name="covered_share", value=float(near.mean()), unit="", better="higher"),
        Result(
            name="triangles", value=made.metrics["mesh_triangles"], unit="", better="higher"
        ),
    ]  # fmt: skip


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=800)
    options.add_argument("--cap", type=int, default=20_000)
    given = options.parse_args()
    if importlib.util.find_spec("open3d") is None:
        print("Open3D is not here: pip install cosma[mesh]", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as base:
        results = meshed(Path(base) / "run", given.steps, given.cap)
    return show("mesh", results, as_json=given.json)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # torch and Open3D wait for each other when they are taken down
