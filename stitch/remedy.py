"""What would let a member in that the evidence leaves out: for the operator to read."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stitch.priors import Readings
from stitch.register import Edge
from stitch.score import Thresholds, Verdict

_NOTHING = 6  # matches that two unrelated reconstructions have in common by chance, or fewer


def remedy(
    names: Sequence[str],
    edge: Edge,
    verdict: Verdict,
    thresholds: Thresholds,
    readings: Sequence[Readings],
) -> str:
    """One or two sentences for the best pair of a member that is left out."""
    one, other = names[edge.source], names[edge.target]
    if verdict.bent:
        return (
            "Reconstruct the bent one again from more or sharper frames (frames.fps, "
            "frames.select: motion); no transform can repair it."
        )
    if verdict.undecided:
        return (
            f"Approve or reject {one} and {other} or what contradicts it by their pictures, or "
            "ingest a segment that overlaps both sides: it closes a loop."
        )
    if edge.inliers <= _NOTHING:
        apart = gap_m(readings[edge.source], readings[edge.target])
        far = f" By their positions they come no nearer than {apart:.0f} m." if apart else ""
        return (
            f"They have no common ground that both saw.{far} Film a pass that overlaps both, or "
            "ingest the clip between them."
        )
    if edge.hull_share < thresholds.min_hull_share and edge.inliers >= thresholds.min_inliers:
        times = math.ceil(10 * thresholds.min_hull_share / max(edge.hull_share, 0.01)) / 10
        return (
            f"What they share is one corner: about {times:g} times as much common ground is "
            f"needed. Let the frames of {one} and {other} reach further into each other, or add "
            "the segment that lies between them."
        )
    missing = max(thresholds.min_inliers - edge.inliers, 1)
    return (
        f"At least {missing} more common points are needed: more frames where {one} and {other} "
        "overlap (frames.fps), or more features a frame (sfm.max_features)."
    )


def gap_m(one: Readings, other: Readings) -> float | None:
    """The nearest that two members' positions come; None where one has none, or they cross."""
    known = [r.positions[(r.positions == r.positions).all(axis=1)] for r in (one, other)]
    if not all(len(rows) for rows in known):
        return None
    apart = ((known[0][:, None, :2] - known[1][None, :, :2]) ** 2).sum(axis=2).min()
    return math.sqrt(float(apart)) or None
