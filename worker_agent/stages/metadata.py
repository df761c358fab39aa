"""MetadataExtraction: device, creation time, GPS fixes, gravity and exposure of every clip.

Works from `output/validation.json` and the telemetry that FrameExtraction set aside: the videos
may be gone by now.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from worker_agent.messages import FailureCode
from worker_agent.stages.api import (
    Artifacts,
    AttemptSpec,
    Reporter,
    StageFailure,
    artifact,
    write_json,
)
from worker_agent.stages.ffprobe import ClipFacts, printable
from worker_agent.stages.gpmf import GpmfError, Telemetry, TimedPayload, read_telemetry

__all__ = ["main", "split_payloads"]


def main(spec: AttemptSpec, report: Reporter) -> Artifacts:
    """Write `output/metadata.json`. Raises StageFailure INPUT_MISSING without a validation report.

    Telemetry that is missing or malformed costs a warning and the clip's GPS, never the job.
    """
    run_dir = Path(spec.run_dir)
    validation = run_dir / "output" / "validation.json"
    if not validation.is_file():
        raise StageFailure(
            FailureCode.INPUT_MISSING,
            "output/validation.json is missing: the clips were not validated on this host",
            advice="Run the job again from Validation.",
        )
    clips = [ClipFacts.from_dict(item) for item in json.loads(validation.read_text())["clips"]]
    listed: list[dict[str, Any]] = []
    for index, clip in enumerate(clips):
        report.progress(index / len(clips), f"reading the telemetry of {printable(clip.name)}")
        telemetry = _telemetry(run_dir, clip, report)
        listed.append(
            {
                "name": clip.name,
                "creation_time": clip.creation_time,
                "device": telemetry.device,
                "gps": [asdict(fix) for fix in telemetry.gps],
                "gps_note": telemetry.gps_note,
                "gravity": [asdict(sample) for sample in telemetry.gravity],
                "readings": telemetry.readings,
            }
        )
    target = run_dir / "output" / "metadata.json"
    write_json(target, {"clips": listed})
    report.progress(1.0, "metadata written")
    return Artifacts(
        files=(artifact(run_dir, target, "metadata"),),
        metrics={
            "gps_fixes": sum(len(clip["gps"]) for clip in listed),
            "gravity_samples": sum(len(clip["gravity"]) for clip in listed),
        },
    )


def split_payloads(data: bytes, packets: list[dict[str, Any]]) -> list[TimedPayload]:
    """Cut a raw track into its packets. Raises GpmfError when sizes do not add up."""
    if sum(int(packet["bytes"]) for packet in packets) != len(data):
        raise GpmfError("the packet sizes do not add up to the track's")
    payloads: list[TimedPayload] = []
    offset = 0
    for packet in packets:
        size = int(packet["bytes"])
        payloads.append(
            TimedPayload(packet["time_s"], packet["duration_s"], data[offset : offset + size])
        )
        offset += size
    return payloads


def _telemetry(run_dir: Path, clip: ClipFacts, report: Reporter) -> Telemetry:
    track = run_dir / "output" / "telemetry" / f"{clip.order}.gpmd"
    times = track.with_suffix(".json")
    if not track.is_file() or not times.is_file():
        note = "the telemetry track could not be read" if clip.has_gpmd else "no telemetry track"
        return Telemetry(None, [], note, [], {})
    try:
        packets = json.loads(times.read_text())["packets"]
        return read_telemetry(split_payloads(track.read_bytes(), packets))
    except GpmfError as error:
        note = f"the telemetry is malformed: {error}"
        report.warning(f"clip {printable(clip.name)}: {note}; going on without GPS and gravity")
        return Telemetry(None, [], note, [], {})
