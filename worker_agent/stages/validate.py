"""Validation: is every clip of the segment there, whole, and a video? Can its log be read?"""

from __future__ import annotations

from pathlib import Path

from worker_agent.messages import FailureCode
from worker_agent.stages.api import (
    Artifacts,
    AttemptSpec,
    Reporter,
    StageFailure,
    artifact,
    write_json,
)
from worker_agent.stages.decoding import expected_pictures
from worker_agent.stages.ffprobe import ClipFacts, printable, probe_clip
from worker_agent.stages.inputs import logs_of, read_log

__all__ = ["main"]


def main(spec: AttemptSpec, report: Reporter) -> Artifacts:
    """Probe `input/*` and write `output/validation.json`.

    Raises StageFailure: the codes of `probe_clip` and of `read_log`, and CONFIG_INVALID for a spec
    without clips.
    """
    run_dir = Path(spec.run_dir)
    clips = sorted(spec.inputs.get("clips", []), key=lambda clip: int(clip["order"]))
    if not clips:
        raise StageFailure(
            FailureCode.CONFIG_INVALID,
            f"job {spec.job} names no clips",
            advice="Ingest the acquisition again.",
        )
    facts: list[ClipFacts] = []
    for index, clip in enumerate(clips):
        report.progress(index / len(clips), f"probing {printable(clip['name'])}")
        facts.append(probe_clip(run_dir / "input" / clip["name"], int(clip["order"])))
    _same_picture_size(facts)
    for name in sorted(set(logs_of(spec).values())):
        read_log(run_dir / "input" / name)  # what is wrong with it is told before the work
    target = run_dir / "output" / "validation.json"
    write_json(target, {"clips": [item.to_dict() for item in facts]})
    report.progress(1.0, f"{len(facts)} clips are whole")
    frames = sum(item.frames_estimated for item in facts)
    fps = float(spec.config["frames"]["fps"])
    return Artifacts(
        files=(artifact(run_dir, target, "validation"),),
        metrics={
            "clips": len(facts),
            "seconds": round(sum(item.duration_s for item in facts), 3),
            "source_frames": frames,
            "frames": sum(expected_pictures(item, fps) for item in facts),
            "bytes": sum(item.bytes for item in facts),
        },
        completed={"video_count": len(facts)},
    )


def _same_picture_size(facts: list[ClipFacts]) -> None:
    """One segment is one camera with one set of intrinsics, so its clips have one size."""
    sizes = {(item.width, item.height) for item in facts}
    if len(sizes) > 1:
        listed = ", ".join(f"{printable(i.name)} {i.width}x{i.height}" for i in facts)
        raise StageFailure(
            FailureCode.CONFIG_INVALID,
            f"the clips of one segment differ in picture size: {listed}",
            advice="Put clips recorded with different settings into segments of their own.",
        )
