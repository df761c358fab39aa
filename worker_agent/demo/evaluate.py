"""How far from the truth are the stitches? `... evaluate --truth DIR --request FILE`

The request (JSON):

    {"segments": [{"name": truth name, "job": id, "registration": path of the sidecar}],
     "stitches": [{"id", "level", "auv", "stitch_report": path of its stitch.json,
                   "members": [MEMBER]}]}

MEMBER is {"name": as in the report, "segment": truth name} for a segment, or {"name",
"stitch_report", "members"} for a stitch of its own. Members that the report left out are counted
in "left_out" and have no part in the error. The answer, on stdout:

    {"segments": [{"name", "job", "cameras", "centre_rms_m"}],
     "stitches": [{"id", "level", "auv", "error_m", "error_fraction", "extent_m", "points",
                   "left_out"}]}
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from stitch.sidecar import Sidecar
from worker_agent.demo.truth import (
    IDENTITY,
    Array,
    Similarity,
    TruthError,
    align_cameras,
    align_centres,
    load_truth,
)

_TAIL = 1.0  # per cent of a segment's points at each end of each axis that count as stray


@dataclass(frozen=True, slots=True)
class _Segment:
    """A reconstruction beside its truth: both in metres of the truth's world where said so."""

    job: str
    points: Array  # (P, 3), frame of the reconstruction
    true_points: Array  # (P, 3), the same points where the segment's own alignment puts them
    centres: Array  # (K, 3), frame of the reconstruction
    true_centres: Array  # (K, 3)

    @property
    def centre_rms_m(self) -> float:
        """Absolute trajectory error: all centres after the best similarity of the centres."""
        fitted = align_centres(self.centres, self.true_centres).apply(self.centres)
        return _rms(fitted - self.true_centres)


def evaluate(truth: Path, request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request, both as in the module's docstring.

    `error_m` (null for fewer than two members) is the RMSE over the members' points between where
    the stitch puts them (scene to truth by one robust similarity of all members' camera centres)
    and where each member's own alignment to the truth puts them; `error_fraction` divides it by
    the diagonal of the box of the latter. Raises TruthError and stitch's FileUnreadable, each
    naming the file.
    """
    segments = {
        str(entry["name"]): _load_segment(
            truth / f"{entry['name']}.json", str(entry["job"]), Path(entry["registration"])
        )
        for entry in request["segments"]
    }
    return {
        "segments": [
            {
                "name": name,
                "job": segment.job,
                "cameras": len(segment.centres),
                "centre_rms_m": round(segment.centre_rms_m, 5),
            }
            for name, segment in segments.items()
        ],
        "stitches": [_judge(stitch, segments) for stitch in request["stitches"]],
    }


def _load_segment(truth_path: Path, job: str, registration: Path) -> _Segment:
    truth = load_truth(truth_path)
    sidecar = Sidecar.load(registration)
    if not np.all(np.isfinite(sidecar.keyframe_time_s)):
        raise TruthError(f"{registration}: keyframes without a time cannot be compared to truth")
    true_centres, true_rotations = truth.at(sidecar.keyframe_time_s)
    centres = sidecar.centres()
    rotations = Rotation.from_quat(np.roll(sidecar.rotations, -1, axis=1)).inv()
    points = sidecar.points.astype(np.float64)
    low, high = np.percentile(points, [_TAIL, 100 - _TAIL], axis=0)
    points = points[np.all((points >= low) & (points <= high), axis=1)]
    own = align_cameras(centres, rotations, true_centres, true_rotations)
    return _Segment(job, points, own.apply(points), centres, true_centres)


def _judge(stitch: dict[str, Any], segments: dict[str, _Segment]) -> dict[str, Any]:
    placed: list[tuple[_Segment, Similarity]] = []
    left_out = _place(stitch, IDENTITY, segments, placed)
    answer = {
        "id": stitch["id"],
        "level": stitch["level"],
        "auv": stitch.get("auv"),
        "error_m": None,
        "error_fraction": None,
        "extent_m": None,
        "points": sum(len(segment.points) for segment, _ in placed),
        "left_out": left_out,
    }
    if len(placed) < 2:
        return answer  # nothing was stitched: there is no error between members
    scene = np.concatenate([to_scene.apply(segment.centres) for segment, to_scene in placed])
    to_truth = align_centres(scene, np.concatenate([s.true_centres for s, _ in placed]))
    is_at = np.concatenate([to_truth.apply(t.apply(s.points)) for s, t in placed])
    belongs = np.concatenate([segment.true_points for segment, _ in placed])
    error = _rms(is_at - belongs)
    extent = float(np.linalg.norm(np.ptp(belongs, axis=0)))
    return answer | {
        "error_m": round(error, 5),
        "error_fraction": round(error / extent, 6),
        "extent_m": round(extent, 3),
    }


def _place(
    stitch: dict[str, Any],
    to_scene: Similarity,
    segments: dict[str, _Segment],
    placed: list[tuple[_Segment, Similarity]],
) -> int:
    """Appends every segment below `stitch` with its way to the scene; how many were left out."""
    path = Path(stitch["stitch_report"])
    transforms = _transforms(path)
    left_out = 0
    for member in stitch["members"]:
        transform = transforms.get(member["name"])
        if transform is None:
            left_out += 1
        elif "members" in member:
            left_out += _place(member, to_scene.after(transform), segments, placed)
        elif member["segment"] in segments:
            placed.append((segments[member["segment"]], to_scene.after(transform)))
        else:
            raise TruthError(f"{path}: {member['segment']} is not one of the request's segments")
    return left_out


def _transforms(path: Path) -> dict[str, Similarity]:
    """member name -> member to scene, of the members that a stitch.json holds."""
    try:
        report = json.loads(path.read_text())
        return {
            str(member["name"]): Similarity(
                float(member["scale"]),
                np.array(member["rotation"], float).reshape(3, 3),
                np.array(member["translation"], float).reshape(3),
            )
            for member in report["members"]
        }
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise TruthError(f"{path}: not a stitch report: {error}") from None


def _rms(differences: Array) -> float:
    return float(np.sqrt((differences**2).sum(axis=1).mean()))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m worker_agent.demo.evaluate")
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--request", type=Path, required=True)
    options = parser.parse_args(argv)
    try:
        answer = evaluate(options.truth, json.loads(options.request.read_text()))
    except KeyError as error:
        print(f"evaluation: {options.request}: the request lacks {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError) as error:
        print(f"evaluation: {error}", file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
