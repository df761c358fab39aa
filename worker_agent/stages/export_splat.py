"""SplatExport: the trained gaussians as a .splat file, 32 bytes a gaussian, for web viewers."""

from __future__ import annotations

from pathlib import Path

from stitch.splat import write_splat
from worker_agent.stages.api import Artifacts, AttemptSpec, Reporter, artifact
from worker_agent.stages.export_ply import read_trained


def main(spec: AttemptSpec, report: Reporter) -> Artifacts:
    """Writes output/<job>.splat. Raises StageFailure INPUT_MISSING."""
    root = Path(spec.run_dir)
    gaussians = read_trained(root)
    target = root / "output" / f"{spec.job}.splat"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_splat(target, gaussians)
    report.progress(1.0, ".splat written", gaussians=len(gaussians))
    made = artifact(root, target, "splat")
    return Artifacts(
        files=(made,),
        metrics={"gaussians": len(gaussians), "bytes": made.bytes},
        completed={"splat_path": made.path},
    )
