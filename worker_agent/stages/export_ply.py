"""PlyExport: the trained gaussians as a standard 3DGS PLY file; a mesh where one is asked for."""

from __future__ import annotations

from pathlib import Path

from stitch.gaussians import Gaussians
from stitch.ply import write_ply
from worker_agent.messages import FailureCode
from worker_agent.stages.api import Artifacts, AttemptSpec, Reporter, StageFailure, artifact
from worker_agent.stages.mesh import open3d_for, with_mesh

GAUSSIANS = Path("train/gaussians.npz")


def read_trained(root: Path) -> Gaussians:
    """train/gaussians.npz of the run directory `root`; StageFailure when it cannot be read."""
    path = root / GAUSSIANS
    try:
        return Gaussians.load_npz(path)
    except (OSError, ValueError) as error:
        raise StageFailure(
            FailureCode.INPUT_MISSING,
            f"{path}: no trained gaussians to export: {error}",
            advice="rerun the job from Training",
        ) from None


def main(spec: AttemptSpec, report: Reporter) -> Artifacts:
    """Writes output/<job>.ply; with `mesh.make` also output/mesh.ply.

    Raises StageFailure INPUT_MISSING; for a mesh TOOL_MISSING.
    """
    root, open3d = Path(spec.run_dir), open3d_for(spec)
    gaussians = read_trained(root)
    target = root / "output" / f"{spec.job}.ply"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_ply(target, gaussians)
    report.progress(1.0, "PLY written", gaussians=len(gaussians))
    ply = artifact(root, target, "ply")
    made = Artifacts(
        files=(ply,),
        metrics={"gaussians": len(gaussians), "bytes": ply.bytes},
        completed={"ply_path": ply.path},
    )
    return made if open3d is None else with_mesh(made, open3d, gaussians, spec, report)
