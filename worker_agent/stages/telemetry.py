"""The telemetry track of each clip beside its frames, so that the video is not needed for it."""

from __future__ import annotations

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

__all__ = ["copy_telemetry"]


def copy_telemetry(run_dir: Path, clips: list[ClipFacts], report: Reporter) -> list[Artifact]:
    """GoPro telemetry as raw payloads plus their times, so that the video is not needed for it.

    `output/telemetry/<order>.gpmd` and `<order>.json` ({"packets": [{time_s, duration_s, bytes}]}).
    A track that cannot be read is worth a warning, not a failure: pictures alone reconstruct.
    """
    folder = run_dir / "output" / "telemetry"
    made: list[Artifact] = []
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
