"""Depth maps of the registered frames, where `depth.model` is set: `output/depth.zip`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worker_agent.stages.api import Artifacts, AttemptSpec, Reporter, artifact
from worker_agent.stages.depth_align import F32, F64, Alignment, align, depths_of

if TYPE_CHECKING:
    from worker_agent.stages.depth_model import DepthModel

__all__ = ["DEPTHS", "model_of", "with_depths"]

DEPTHS = Path("output/depth.zip")
_FARTHEST = 4.0  # times the 99th percentile of the points' depths


def model_of(spec: AttemptSpec) -> DepthModel | None:
    """The configured model, opened; None where there is none.

    Raises StageFailure: TOOL_MISSING, CONFIG_INVALID.
    """
    config = spec.config.get("depth", {})
    if not config.get("model"):
        return None
    from worker_agent.stages.depth_model import DepthModel

    return DepthModel(
        Path(config["model"]).expanduser(),
        side=int(config["side"]),
        mean=config["mean"],
        deviation=config["deviation"],
        threads=int(spec.config["sfm"]["threads"]),
    )


def with_depths(
    made: Artifacts, model: DepthModel, spec: AttemptSpec, report: Reporter
) -> Artifacts:
    """`made` by SfM, with the depth maps of its frames.

    A frame whose map does not agree with the sparse points is left out; when none agrees there is
    a warning and no file. Raises StageFailure CONFIG_INVALID when the model does not run.
    """
    import pycolmap

    from worker_agent.training.depth_files import write_depths

    root, config = Path(spec.run_dir), spec.config["depth"]
    target = root / DEPTHS
    target.unlink(missing_ok=True)
    reconstruction = pycolmap.Reconstruction(str(root / "sfm" / "model"))
    images = sorted(
        (image for image in reconstruction.images.values() if image.has_pose),
        key=lambda image: str(image.name),
    )
    aligned: dict[str, dict[str, Any]] = {}
    depths = [_points(reconstruction, image)[1] for image in images]
    deepest = _FARTHEST * float(np.percentile(np.concatenate(depths), 99))

    def maps() -> Iterator[tuple[str, F32]]:
        for at, image in enumerate(images):
            report.progress(0.99, f"depth map {at + 1} of {len(images)}")
            found, depth = _map_of(root, reconstruction, image, model, config)
            if found is not None and depth is not None:
                aligned[str(image.name)] = asdict(found)
                yield str(image.name), depth

    about = {"model": config["model"], "sha256": model.sha256, "frames": aligned}
    write_depths(target, maps(), deepest, about)
    if not aligned:
        target.unlink()
        report.warning(
            f"depth.model {config['model']}: its maps agree with the sparse points in none of "
            f"{len(images)} frames; going on without (is depth.output right?)"
        )
        return made
    error = float(np.median([one["error"] for one in aligned.values()]))
    return Artifacts(
        files=(*made.files, artifact(root, target, "depth_maps")),
        metrics={**made.metrics, "depth_maps": len(aligned), "depth_error": round(error, 4)},
        completed=made.completed,
    )


def _map_of(
    root: Path, reconstruction: Any, image: Any, model: DepthModel, config: dict[str, Any]
) -> tuple[Alignment | None, F32 | None]:
    """How the model's map of an image fits its points, and the depths that follow."""
    from worker_agent.training.dataset import undistorted

    camera = reconstruction.cameras[image.camera_id]
    width = round(int(config["side"]) * max(1.0, camera.width / camera.height))
    picture, matrix = undistorted(root / "frames" / image.name, camera, width, None)
    said = model.predict(picture)
    places, depths = _points(reconstruction, image)
    if not len(places):
        return None, None
    columns, rows = (places @ matrix.T)[:, :2].T / places[:, 2]
    height, width = said.shape
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    at = said[rows[inside].astype(int), columns[inside].astype(int)].astype(np.float64)
    found = align(at, depths[inside], config["output"])
    return found, None if found is None else depths_of(said, found, config["output"])


def _points(reconstruction: Any, image: Any) -> tuple[F64, F64]:
    """(N, 3) in the camera's frame, and their (N,) depths, of the points that an image shows."""
    seen = [p.point3D_id for p in image.points2D if p.has_point3D()]
    world = np.array([reconstruction.points3D[key].xyz for key in seen]).reshape(-1, 3)
    pose = image.cam_from_world().matrix()
    local = world @ pose[:, :3].T + pose[:, 3]
    local = local[local[:, 2] > 0]
    return local, local[:, 2]
