"""SplatExport: the trained gaussians as a .splat file, 32 bytes a gaussian, for web viewers; and,
as the last stage, what the whole segment is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stitch.splat import write_splat
from worker_agent.messages import FailureCode
from worker_agent.stages.api import (
    Artifacts,
    AttemptSpec,
    Reporter,
    StageFailure,
    artifact,
    write_json,
)
from worker_agent.stages.export_ply import read_trained
from worker_agent.stages.verdict import judge


def main(spec: AttemptSpec, report: Reporter) -> Artifacts:
    """Writes output/<job>.splat and output/verdict.json.

    Raises StageFailure: INPUT_MISSING, QUALITY_LOW for a verdict of fail.
    """
    root = Path(spec.run_dir)
    gaussians = read_trained(root)
    target = root / "output" / f"{spec.job}.splat"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_splat(target, gaussians)
    verdict, level = _judged(root, spec, report)
    report.progress(1.0, f".splat written, verdict {level}", gaussians=len(gaussians))
    made = artifact(root, target, "splat")
    return Artifacts(
        files=(made, artifact(root, verdict, "verdict")),
        metrics={"gaussians": len(gaussians), "bytes": made.bytes, "verdict": level},
        completed={"splat_path": made.path},
    )


def _judged(root: Path, spec: AttemptSpec, report: Reporter) -> tuple[Path, str]:
    figures = {**_read(root / "output" / "sfm.json"), **_read(root / "output" / "training.json")}
    verdict = judge(figures, spec.config.get("verdict", {}))
    target = root / "output" / "verdict.json"
    write_json(target, verdict.to_dict(figures))
    if verdict.level == "fail":
        raise StageFailure(
            FailureCode.QUALITY_LOW,
            f"the reconstruction is not good enough: {'; '.join(verdict.findings)}",
            advice="Look at output/preview.jpg. Leave the clip out, train with preset best, or "
            "change the threshold named.",
            evidence=verdict.to_dict(figures),
        )
    for finding in verdict.findings:
        report.warning(f"verdict {verdict.level}: {finding}")
    return target, verdict.level


def _read(path: Path) -> dict[str, Any]:
    """{} for a report that is not there: what it would have said was not measured."""
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
