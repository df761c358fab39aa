"""When a stitch is refused or leaves a member out: with what numbers, and what would help."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from stitch.evidence import Evidence
from stitch.priors import Readings
from stitch.remedy import remedy
from stitch.score import Thresholds
from worker_agent.messages import FailureCode
from worker_agent.stages.api import StageFailure

_QUORUM = (2, 3)  # two thirds of an AUV's segments make a scene worth delivering


def enough(level: str, delivered: int, wanted: int) -> bool:
    share, of = _QUORUM
    return level == "per_auv" and delivered >= 2 and delivered * of >= wanted * share


def left_out_entry(
    index: int,
    names: Sequence[str],
    evidence: Evidence,
    thresholds: Thresholds,
    readings: Sequence[Readings],
    errors_px: Sequence[float | None],
) -> dict[str, Any]:
    """The member, the best that can be said for it, and what would let it in. `errors_px`: of all
    members' reconstructions, None of a cloud."""
    entries = evidence.entries(names)
    mine = [k for k, edge in enumerate(evidence.edges) if index in (edge.source, edge.target)]
    best = max(mine, key=lambda k: (entries[k]["accepted"], entries[k]["inliers"]))
    name = names[index]
    pair = entries[best]
    other = pair["target"] if pair["source"] == name else pair["source"]
    reason = f"best pair is with {other}: {pair['reason']}"
    quarantined = any(entries[k]["bent"] for k in mine)
    quarantined &= not any(entries[k]["accepted"] for k in mine)
    return {
        "name": name,
        "reason": f"quarantined, its reconstruction looks bent{_errors(index, errors_px)}; {reason}"
        if quarantined
        else reason,
        "quarantined": quarantined,
        "best_pair": pair,
        "would_fix": remedy(
            names, evidence.edges[best], evidence.verdicts[best], thresholds, readings
        ),
    }


def _errors(index: int, errors_px: Sequence[float | None]) -> str:
    own = errors_px[index]
    others = [e for k, e in enumerate(errors_px) if k != index and e is not None]
    if own is None or not others:
        return ""
    return f" ({own:.2f} px of reprojection error, the others {statistics.median(others):.2f})"


def too_weak(
    level: str,
    names: Sequence[str],
    entries: list[dict[str, Any]],
    evidence: Evidence,
    left_out: list[dict[str, Any]],
) -> StageFailure:
    what = "AUVs" if level == "cross_auv" else "segments"
    worst = left_out[0]
    return StageFailure(
        FailureCode.STITCH_EVIDENCE_WEAK,
        f"{len(left_out)} of {len(names)} {what} cannot be placed on image evidence: "
        f"{worst['name']}, {worst['reason']}",
        advice=f"{worst['would_fix']} `cosma stitch show STITCH --pictures DIR` draws what both "
        "have in common; `cosma stitch approve`, `reject` or `pin` decide about a pair.",
        evidence={
            "pairs": entries,
            "components": [
                [names[index] for index in group] for group in evidence.solution.components
            ],
            "left_out": [entry["name"] for entry in left_out],
            "would_fix": {entry["name"]: entry["would_fix"] for entry in left_out},
        },
    )
