"""What a clip's file and its vehicle say beside the pictures, kept so that neither is needed again.

`output/telemetry/<order>.gpmd` and `<order>.json` ({"packets": [{time_s, duration_s, bytes}]}):
GoPro's telemetry as raw payloads. `<order>.settings`: its settings of the recording. `nav/<name>`:
the vehicle's logs.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import ffmpeg

from worker_agent.messages import Artifact
from worker_agent.stages.api import Reporter, artifact, write_json
from worker_agent.stages.ffprobe import (
    ClipFacts,
    ffmpeg_path,
    gpmd_packets,
    printable,
    run_ffmpeg,
)
from worker_agent.stages.mp4_boxes import camera_settings_box

__all__ = ["copy_telemetry", "nav_copy"]


def nav_copy(run_dir: Path, name: str) -> Path:
    """Where the log of that name in `input/` is kept."""
    return run_dir / "output" / "telemetry" / "nav" / name


def copy_telemetry(
    run_dir: Path, clips: list[ClipFacts], logs: Iterable[str], report: Reporter
) -> list[Artifact]:
    """`logs`: names in `input/` of the vehicle's logs.

    A track that cannot be read is worth a warning, not a failure: pictures alone reconstruct.
    """
    folder = run_dir / "output" / "telemetry"
    made = [*_copy_logs(run_dir, logs), *_copy_settings(run_dir, clips)]
    for clip in clips:
        if clip.gpmd_stream is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        source = run_dir / "input" / clip.name
        target = folder / f"{clip.order}.gpmd"
        stream = ffmpeg.input(ffmpeg_path(source))[str(clip.gpmd_stream)]
        copy = stream.output(ffmpeg_path(target), c="copy", f="data")
        program, *rest = ffmpeg.compile(copy, overwrite_output=True)
        result = run_ffmpeg([program, "-nostdin", "-v", "error", *rest])
        packets = gpmd_packets(source, clip.gpmd_stream) if result.returncode == 0 else []
        whole = bool(packets) and target.stat().st_size == sum(p.bytes for p in packets)
        if not whole:
            target.unlink(missing_ok=True)
            report.warning(
                f"clip {printable(clip.name)}: its telemetry track cannot be read; going on "
                "without GPS and gravity"
            )
            continue
        times = folder / f"{clip.order}.json"
        write_json(times, {"packets": [asdict(packet) for packet in packets]})
        made += [artifact(run_dir, target, "telemetry"), artifact(run_dir, times, "telemetry")]
    return made


def _copy_logs(run_dir: Path, logs: Iterable[str]) -> list[Artifact]:
    made = []
    for name in sorted(set(logs)):
        target = nav_copy(run_dir, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run_dir / "input" / name, target)
        made.append(artifact(run_dir, target, "telemetry"))
    return made


def _copy_settings(run_dir: Path, clips: list[ClipFacts]) -> list[Artifact]:
    made = []
    for clip in clips:
        box = camera_settings_box(run_dir / "input" / clip.name)
        if box is None:
            continue
        target = run_dir / "output" / "telemetry" / f"{clip.order}.settings"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(box)
        made.append(artifact(run_dir, target, "telemetry"))
    return made
