"""Is the evidence for one registration enough? A pure function of its numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from stitch.register import Edge, Method

_SOUND = 0.9
"""Of matches that lie near each other, a Sim3 explains 95 to 100 % between sound reconstructions;
of two that were bent it explained 58 and 12 %."""

_BENT = 0.7
_BEND, _SOME_BEND = 0.02, 0.01  # of the extent; sound pairs show less than 0.001
_RASTER_SHARE = 0.5  # times `min_share`: pictures of clouds have more matches that mean nothing
_RASTER_FAR = 0.01  # of the extent, one sigma; at 0.012 a pair's scale was 2.5 % off
_CHECK_SHARE = 0.9  # of identical keypoints; bent reconstructions had 58 and 12 %
_CHECK_ANGLE_DEG, _CHECK_SCALE, _CHECK_OFFSET = 1.0, 0.02, 0.02

_UNRELATED: dict[Method, int] = {"points": 1778, "raster": 669}
"""Pairs without common ground that were judged by the rules below (docs/decisions/0010), by how
they were registered. None was accepted; the most inliers were 7 in both, of 12 needed."""
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """What `_UNRELATED` was judged by: 12 inliers, a share of 0.2, a tenth of the ground."""

    min_inliers: int
    min_share: float  # inliers of the matches
    min_hull_share: float  # spanned in every direction; below it the far end is extrapolated


@dataclass(frozen=True, slots=True)
class Verdict:
    accepted: bool
    reason: str  # one line with the numbers, for both outcomes
    doubt: str = ""  # of an accepted pair: what an operator should look at
    bent: bool = False  # of a refused pair: no Sim3 can be right, one of the two is bent
    undecided: bool = False  # of a refused pair: it or what contradicts it is wrong


def false_accepts(edges: Iterable[Edge]) -> dict[str, dict[str, Any]]:
    """By method of the edges, where it was measured: of so many unrelated pairs so many were
    accepted, and the share that is accepted at most, at 95 %, were each pair drawn by itself."""
    return {
        method: {
            "unrelated_pairs": count,
            "accepted": 0,
            "at_most": round(1.0 - (1.0 - _CONFIDENCE) ** (1.0 / count), 5),
        }
        for method in sorted({edge.method for edge in edges})
        if (count := _UNRELATED.get(method))
    }


def judge(edge: Edge, thresholds: Thresholds) -> Verdict:
    """Accept or refuse; a refusal names every number that fell short."""
    if edge.method == "pinned":
        return Verdict(True, f"pinned by an operator, {edge.residual:.1%} of the depth off")
    if edge.method == "frames":
        return _judge_frames(edge, thresholds)
    short = _shortfalls(edge, thresholds)
    if short:
        return Verdict(False, "; ".join(short))
    return _judge_shape(edge, _agreement(edge))


def _shortfalls(edge: Edge, thresholds: Thresholds) -> list[str]:
    if edge.sim3 is None:
        needed = thresholds.min_inliers
        return [f"no transform fits any of {edge.matches} matches, {needed} inliers needed"]
    raster = edge.method == "raster"
    share = thresholds.min_share * (_RASTER_SHARE if raster else 1.0)
    short = []
    if edge.inliers < thresholds.min_inliers:
        short.append(f"{edge.inliers} inliers, {thresholds.min_inliers} needed")
    if edge.share < share:
        short.append(f"{edge.share:.0%} of {edge.matches} matches agree, {share:.0%} needed")
    if edge.hull_share < thresholds.min_hull_share:
        short.append(
            f"they span {edge.hull_share:.0%} of the smaller footprint, "
            f"{thresholds.min_hull_share:.0%} needed, and leave the farthest ground "
            f"{edge.far_error:.1%} of the extent uncertain"
        )
    if raster and edge.far_error > _RASTER_FAR:
        short.append(
            f"they leave the farthest ground {edge.far_error:.1%} of the extent uncertain, "
            f"{_RASTER_FAR:.0%} allowed of clouds alone"
        )
    return short


def _judge_frames(edge: Edge, thresholds: Thresholds) -> Verdict:
    """The poses of common frames, believed only when the ground says the same."""
    said = f"{edge.frames} frames in both"
    if edge.check is None or edge.inliers < thresholds.min_inliers:
        return Verdict(
            False,
            f"{said}, but {edge.inliers} common points to check them, "
            f"{thresholds.min_inliers} needed",
        )
    if edge.check.share < _CHECK_SHARE:
        return Verdict(
            False,
            f"{said}, but one transform explains {edge.check.share:.0%} of {edge.check.identical} "
            f"keypoints that both have, {_CHECK_SHARE:.0%} needed: bent",
            bent=True,
        )
    off = (
        f"{edge.check.angle_deg:.2f} degrees, {edge.check.scale:.1%} in scale and "
        f"{edge.check.offset:.1%} of the extent"
    )
    if (
        edge.check.angle_deg > _CHECK_ANGLE_DEG
        or edge.check.scale > _CHECK_SCALE
        or edge.check.offset > _CHECK_OFFSET
    ):
        return Verdict(
            False, f"{said}, but their poses and the ground differ by {off}: bent", bent=True
        )
    return _judge_shape(edge, f"{said}, and the ground agrees to {off}")


def _judge_shape(edge: Edge, accepted: str) -> Verdict:
    if edge.bend > _BEND:
        return Verdict(
            False,
            "one of the two is bent: what their common points differ by curves, and carries the "
            f"far end off by {edge.bend:.1%} of the extent or more",
            bent=True,
        )
    near = f"{edge.agreement:.0%} of the matches that lie near each other agree"
    if edge.agreement < _BENT:
        return Verdict(False, f"only {near}: one of the two is bent", bent=True)
    if edge.agreement < _SOUND or edge.bend > _SOME_BEND:
        return Verdict(
            True,
            accepted,
            f"{near}, and they curve by {edge.bend:.1%} of the extent: one may be bent",
        )
    return Verdict(True, accepted)


def _agreement(edge: Edge) -> str:
    return (
        f"{edge.inliers} of {edge.matches} matches agree ({edge.share:.0%}) "
        f"over {edge.hull_share:.0%} of the smaller footprint"
    )
