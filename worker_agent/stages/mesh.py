"""A mesh of the trained scene (`mesh.make`): depth is rendered from every view and fused.

Truncated signed distances (Curless and Levoy 1996) by Open3D, whose marching cubes make the
triangles. The rasterizer of the CPU renders: this stage holds no GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worker_agent.messages import FailureCode
from worker_agent.stages.api import Artifacts, AttemptSpec, Reporter, StageFailure, artifact

if TYPE_CHECKING:
    from stitch.gaussians import Gaussians
    from worker_agent.training.dataset import Dataset

__all__ = ["open3d_for", "with_mesh"]

MESH = Path("output/mesh.ply")
_VOXEL_PX = 1.5  # pixels at the scene's median depth that a voxel is wide, where nothing is asked
_TRUNCATION = 4.0  # voxels
_SOLID = 0.7  # least alpha of a pixel whose depth means anything
_FARTHEST = 4.0  # times the median depth: beyond it a pixel sees too little
_LEAST_VIEWS = 2.0  # that see a piece of surface
_BLOCK, _BLOCKS = 16, 10_000  # voxels along a block's side; how many there is room for at first
_PIECE = 0.01  # of all triangles: smaller pieces hang in the water


def open3d_for(spec: AttemptSpec) -> Any | None:
    """The module, None where no mesh is asked for. Raises StageFailure TOOL_MISSING."""
    if not spec.config.get("mesh", {}).get("make"):
        return None
    try:
        import open3d
    except ImportError as error:
        raise StageFailure(
            FailureCode.TOOL_MISSING,
            f"mesh.make is set, but Open3D is not on this host ({error})",
            advice="Install cosma[mesh] into its stage environment, or leave mesh.make out.",
        ) from None
    return open3d


def with_mesh(
    made: Artifacts, open3d: Any, gaussians: Gaussians, spec: AttemptSpec, report: Reporter
) -> Artifacts:
    """`made`, with `output/mesh.ply` in the frame of the SfM model; without it and with a warning
    where there are no poses to render from, or nothing solid is seen."""
    from worker_agent.training.backend import cpu_backend
    from worker_agent.training.dataset import DatasetUnusable, load_dataset

    root, config = Path(spec.run_dir), spec.config["mesh"]
    target = root / MESH
    target.unlink(missing_ok=True)
    try:
        dataset = load_dataset(
            root / "frames", root / "sfm" / "model", width=int(config["width"]), test_every=2
        )
    except DatasetUnusable as error:
        report.warning(f"no mesh: {error}")
        return made
    threads = int(spec.config["train"]["cpu"]["threads"])
    triangles = _fused(open3d, gaussians, dataset, cpu_backend(threads), config["voxel"], report)
    if not triangles:
        report.warning("no mesh: nothing solid is seen from any view")
        return made
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}")
    open3d.io.write_triangle_mesh(str(temporary), triangles, write_ascii=False)
    temporary.replace(target)
    return Artifacts(
        files=(*made.files, artifact(root, target, "mesh")),
        metrics={**made.metrics, "mesh_triangles": len(triangles.triangles)},
        completed=made.completed,
    )


def _fused(
    open3d: Any,
    gaussians: Gaussians,
    dataset: Dataset,
    backend: Any,
    voxel: float | None,
    report: Reporter,
) -> Any:
    """Open3D's mesh; None when it has no triangles. All in the dataset's normalised units, where
    the median depth is 1, but for the vertices in the end."""
    import torch

    from worker_agent.training.depth_prior import expected_depth
    from worker_agent.training.draw import draw
    from worker_agent.training.gaussians import from_world

    parameters = from_world(gaussians, dataset.normalisation)
    degree = gaussians.sh_degree
    colours = torch.cat([parameters["sh0"], parameters["shN"]], dim=1)
    focal = float(dataset.intrinsics[0, 0, 0])
    side = voxel * dataset.normalisation.scale if voxel else _VOXEL_PX / focal
    core, image_of = open3d.core, open3d.t.geometry.Image
    volume = open3d.t.geometry.VoxelBlockGrid(
        attr_names=("tsdf", "weight", "color"),
        attr_dtypes=(core.float32,) * 3,
        attr_channels=((1), (1), (3)),
        voxel_size=side,
        block_resolution=_BLOCK,
        block_count=_BLOCKS,
        device=core.Device("CPU:0"),
    )
    views = len(dataset.names)
    for view in range(views):
        pose, matrix = dataset.viewmats[view], dataset.intrinsics[view]
        with torch.no_grad():
            depth, alpha = expected_depth(backend, parameters, pose, matrix, dataset.size)
            image, _, _ = draw(
                backend, parameters, colours, pose, matrix, dataset.size, sh_degree=degree
            )
        solid = (alpha > _SOLID) & (depth < _FARTHEST)
        if dataset.masks is not None:
            solid &= dataset.masks[view]
        seen = image_of(torch.where(solid, depth, 0.0)[..., None].contiguous().numpy())
        picture = image_of(image.clamp(0, 1).contiguous().numpy())
        # Here the centre of the first pixel is (0.5, 0.5), there it is (0, 0).
        lens = matrix.double() - torch.tensor([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
        where = core.Tensor(lens.numpy()), core.Tensor(pose.double().numpy())
        within = 1.0, _FARTHEST, _TRUNCATION
        blocks = volume.compute_unique_block_coordinates(seen, *where, *within)
        volume.integrate(blocks, seen, picture, where[0], where[0], where[1], *within)
        report.progress(0.1 + 0.85 * (view + 1) / views, f"mesh: view {view + 1} of {views}")
    found = volume.extract_triangle_mesh(weight_threshold=_LEAST_VIEWS).to_legacy()
    if not len(found.triangles):
        return None
    which, sizes, _ = found.cluster_connected_triangles()
    small = np.asarray(sizes)[np.asarray(which)] < _PIECE * len(found.triangles)
    found.remove_triangles_by_mask(small)
    found.remove_unreferenced_vertices()
    vertices = dataset.normalisation.undo(np.asarray(found.vertices))
    found.vertices = open3d.utility.Vector3dVector(vertices)
    return found
