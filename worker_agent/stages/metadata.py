"""MetadataExtraction: what camera and vehicle recorded beside the pictures, for every clip.

Device and settings, creation time, GPS fixes, gravity, orientation, exposure, and the vehicle's
log. Works from `output/validation.json` and what FrameExtraction set aside: the videos may be gone
by now.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
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
from worker_agent.stages.gpmf import Telemetry, TimedPayload, read_telemetry
from worker_agent.stages.inputs import NavSettings, logs_of, read_log
from worker_agent.stages.klv import GpmfError, read_settings
from worker_agent.stages.navigation import NavLog, clip_starts, on_timeline
from worker_agent.stages.telemetry import nav_copy

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
    recorded: list[Telemetry] = []
    for index, clip in enumerate(clips):
        report.progress(index / len(clips), f"reading the telemetry of {printable(clip.name)}")
        recorded.append(_telemetry(run_dir, clip, report))
    starts = clip_starts(
        [
            (clip.name, clip.duration_s, telemetry.started_at or _clock(clip.creation_time))
            for clip, telemetry in zip(clips, recorded, strict=True)
        ]
    )
    logs = _Logs(spec, report)
    listed: list[dict[str, Any]] = [
        {
            "name": clip.name,
            "creation_time": clip.creation_time,
            "started_at": start,
            "device": telemetry.device,
            "settings": _settings(run_dir, clip, report),
            "gps": [asdict(fix) for fix in telemetry.gps],
            "gps_note": telemetry.gps_note,
            "gravity": [asdict(sample) for sample in telemetry.gravity],
            "orientation": [asdict(sample) for sample in telemetry.orientation],
            "readings": telemetry.readings,
            "navigation": logs.of(clip, start),
        }
        for clip, telemetry, start in zip(clips, recorded, starts, strict=True)
    ]
    target = run_dir / "output" / "metadata.json"
    write_json(target, {"clips": listed})
    report.progress(1.0, "metadata written")
    return Artifacts(
        files=(artifact(run_dir, target, "metadata"),),
        metrics={
            "gps_fixes": sum(len(clip["gps"]) for clip in listed),
            "gravity_samples": sum(len(clip["gravity"]) for clip in listed),
            "navigation_samples": sum(
                len(clip["navigation"]["samples"]) for clip in listed if clip["navigation"]
            ),
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


def _settings(run_dir: Path, clip: ClipFacts, report: Reporter) -> dict[str, str]:
    """The camera's own, by GoPro's keys; empty when the file has none."""
    kept = run_dir / "output" / "telemetry" / f"{clip.order}.settings"
    if not kept.is_file():
        return {}
    try:
        return read_settings(kept.read_bytes())
    except GpmfError as error:
        report.warning(
            f"clip {printable(clip.name)}: the camera's settings are malformed: {error}; going on "
            "without them"
        )
        return {}


def _clock(creation_time: str | None) -> float | None:
    """What the container says as Unix time: on many cameras the local time, marked as UTC."""
    try:
        when = datetime.fromisoformat(creation_time or "")
    except ValueError:
        return None
    seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    return seconds if seconds > 0 else None


class _Logs:
    """The vehicle's logs, each read once."""

    def __init__(self, spec: AttemptSpec, report: Reporter) -> None:
        self._run_dir = Path(spec.run_dir)
        self._names = logs_of(spec)
        self._settings = NavSettings.of(spec)
        self._report = report
        self._read: dict[str, NavLog] = {}

    def of(self, clip: ClipFacts, start_s: float | None) -> dict[str, Any] | None:
        """{"log", "frame", "samples"} on the clip's timeline; None without a log."""
        name = self._names.get(clip.name)
        if name is None:
            return None
        if name not in self._read:
            self._read[name] = read_log(nav_copy(self._run_dir, name))
        log = self._read[name]
        samples = on_timeline(
            log,
            start_s=start_s,
            duration_s=clip.start_s + clip.duration_s,
            offset_s=self._settings.offset_s,
            margin_s=self._settings.max_gap_s,
            lift_m=self._settings.camera_above_altimeter_m,
        )
        if not samples:
            self._report.warning(
                f"clip {printable(clip.name)}: {name} says nothing about it: {_apart(log, start_s)}"
                "; going on without it (navigation.offset_s is added to the log's times)"
            )
        return {"log": name, "frame": log.frame, "samples": [asdict(one) for one in samples]}


def _apart(log: NavLog, start_s: float | None) -> str:
    first, last = log.samples[0].time_s, log.samples[-1].time_s
    if log.clock == "clip":
        return f"it goes from {first:.1f} to {last:.1f} s"
    said = f"it goes from {_utc(first)} to {_utc(last)}"
    known = "has no time" if start_s is None else f"begins at {_utc(start_s)} by its own clock"
    return f"{said}, the clip {known}"


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
