"""Every stage played short: the same contract and files, real bytes, no reconstruction.

Fault drills run it instead of the stages (worker_agent.rehearse). What a stage makes is a function
of what it read, and what it read is checked, so a file lost or mixed up on the way shows.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from worker_agent.messages import AttemptSpec, FailureCode
from worker_agent.stages.api import Artifacts, Reporter, StageFailure, artifact, write_json

FRAMES_PER_CLIP = 8
SHORTEST_S, LONGEST_S = 0.2, 0.8
PACE = "COSMA_REHEARSAL_PACE"  # a variable of the environment: times these durations
_OUTPUT_BYTES = 20_000
# While this file lies in the work directory, the stages named in it (all, when it is empty) go on
# working: a drill holds them that way.
HOLD = "hold-stages"


@dataclass(frozen=True, slots=True)
class _Part:
    """What one stage reads, and makes: (artifact kind, path in the run directory)."""

    reads: tuple[str, ...]
    makes: tuple[tuple[str, str], ...]


_PARTS = {
    "Validation": _Part((), (("validation", "output/validation.json"),)),
    "MetadataExtraction": _Part(("frames/frames.json",), (("metadata", "output/metadata.json"),)),
    "ManifestGeneration": _Part(("output/metadata.json",), (("manifest", "output/manifest.json"),)),
    "ColmapReconstruction": _Part(
        ("frames/frames.json", "output/manifest.json"),
        (
            ("sfm_model", "sfm/model.bin"),
            ("sfm_report", "output/sfm.json"),
            ("registration", "output/registration.npz"),
        ),
    ),
    "Training": _Part(
        ("sfm/model.bin",),
        (
            ("gaussians", "train/gaussians.npz"),
            ("training_report", "output/training.json"),
            ("preview", "output/preview.jpg"),
        ),
    ),
    "PlyExport": _Part(("train/gaussians.npz",), (("ply", "output/{job}.ply"),)),
    "SplatExport": _Part(("train/gaussians.npz",), (("splat", "output/{job}.splat"),)),
    "Stitch": _Part(
        (),
        (
            ("ply", "output/{job}.ply"),
            ("registration", "output/registration.npz"),
            ("stitch_report", "output/stitch.json"),
        ),
    ),
}


def main(spec: AttemptSpec, report: Reporter) -> Artifacts:
    """Raises StageFailure (INPUT_MISSING, INPUT_TRUNCATED) when what it reads is not there."""
    run_dir = Path(spec.run_dir)
    seed = hashlib.sha256(f"{spec.job}/{spec.stage}".encode()).digest()
    duration_s = SHORTEST_S + (LONGEST_S - SHORTEST_S) * seed[0] / 255
    duration_s *= float(os.environ.get(PACE, "1"))
    if spec.stage == "FrameExtraction":
        made = _extract(run_dir, spec)
        _work(run_dir, spec, report, seed, duration_s)
        return made
    part = _PARTS[spec.stage]
    digest = hashlib.sha256(spec.stage.encode())
    for path in (*_inputs(run_dir, spec), *(run_dir / name for name in part.reads)):
        digest.update(_read(path))
    _work(run_dir, spec, report, digest.digest(), duration_s)
    files = []
    for kind, pattern in part.makes:
        path = run_dir / pattern.format(job=spec.job)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json":
            write_json(path, {"kind": kind, "made_from": digest.hexdigest()})
        else:
            path.write_bytes(
                hashlib.shake_256(digest.digest() + kind.encode()).digest(_OUTPUT_BYTES)
            )
        files.append(artifact(run_dir, path, kind))
    return Artifacts(files=tuple(files), metrics={"drill": True})


def _inputs(run_dir: Path, spec: AttemptSpec) -> Iterator[Path]:
    """The clips of a segment, of the declared size; the members of a stitch."""
    if spec.stage == "Validation":
        for clip in spec.inputs["clips"]:
            path = run_dir / "input" / clip["name"]
            if len(_read(path)) != clip["bytes"]:
                raise StageFailure(
                    FailureCode.INPUT_TRUNCATED,
                    f"{path} has not the declared {clip['bytes']} bytes",
                )
            yield path
    if spec.stage == "Stitch":
        for member in spec.inputs["members"]:
            yield run_dir / member["ply"]
            yield run_dir / member["registration"]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise StageFailure(FailureCode.INPUT_MISSING, f"{path} is not there") from None


def _extract(run_dir: Path, spec: AttemptSpec) -> Artifacts:
    """Every clip cut into pieces, listed with their hashes as real frames are."""
    folder = run_dir / "frames"
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for clip in spec.inputs["clips"]:
        content = _read(run_dir / "input" / clip["name"])
        size = -(-len(content) // FRAMES_PER_CLIP)
        for at in range(0, len(content), size):
            frame = folder / f"f{len(rows) + 1:06d}.jpg"
            frame.write_bytes(content[at : at + size])
            made = artifact(run_dir, frame, "frame")
            rows.append(
                {
                    "name": frame.name,
                    "clip": clip["name"],
                    "time_s": float(at),
                    "bytes": made.bytes,
                    "sha256": made.sha256,
                }
            )
    listing = folder / "frames.json"
    clips = [
        {"name": clip["name"], "shown": FRAMES_PER_CLIP, "decoded": FRAMES_PER_CLIP}
        for clip in spec.inputs["clips"]
    ]
    made_of = {"clips": clips, "frames": rows, "verified": True}
    write_json(listing, {"fps": 1.0, "width": 0, "height": 0, **made_of})
    return Artifacts(
        files=(artifact(run_dir, listing, "frames"),),
        metrics={"frame_bytes": sum((folder / str(row["name"])).stat().st_size for row in rows)},
        completed={"total_frames": len(rows)},
    )


def _held(hold: Path, spec: AttemptSpec) -> bool:
    try:
        named = hold.read_text().split()
    except FileNotFoundError:
        return False
    return not named or spec.stage in named


def _work(
    run_dir: Path, spec: AttemptSpec, report: Reporter, seed: bytes, duration_s: float
) -> None:
    """Hash for `duration_s`, or as long as the drill holds stages; tell events and log of it."""
    hold = run_dir.parent.parent / HOLD
    began = time.monotonic()
    turn = 0
    while (passed := time.monotonic() - began) < duration_s or _held(hold, spec):
        seed = hashlib.pbkdf2_hmac("sha256", seed, b"drill", 500)
        print(f"{spec.job} {spec.stage} {spec.attempt} line {turn} {seed.hex()}")
        report.progress(min(0.99, passed / duration_s), f"turn {turn}")
        turn += 1
        time.sleep(0.04)
    report.progress(1.0, f"{turn} turns")
