"""Is the evidence for one registration enough? A pure function of its numbers."""

from __future__ import annotations

from dataclasses import dataclass

from stitch.register import Edge

_WARP_SHARE = 0.6
"""Sound pairs agree in 70 to 97 % of their matches; a bent reconstruction measured 12 to 58 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """At 12 inliers and a share of 0.2, none of 120 unrelated pairs was accepted."""

    min_inliers: int
    min_share: float  # inliers of the matches
    min_hull_share: float  # below it the far end is extrapolated, scale first


@dataclass(frozen=True, slots=True)
class Verdict:
    accepted: bool
    reason: str  # one line with the numbers, for both outcomes
    doubt: str = ""  # of an accepted pair: what an operator should look at


def judge(edge: Edge, thresholds: Thresholds) -> Verdict:
    """Accept or refuse; a refusal names every number that fell short."""
    short = []
    if edge.inliers < thresholds.min_inliers:
        short.append(f"{edge.inliers} inliers, {thresholds.min_inliers} needed")
    if edge.share < thresholds.min_share:
        short.append(
            f"{edge.share:.0%} of {edge.matches} matches agree, {thresholds.min_share:.0%} needed"
        )
    if edge.hull_share < thresholds.min_hull_share:
        short.append(
            f"they span {edge.hull_share:.0%} of the smaller footprint, "
            f"{thresholds.min_hull_share:.0%} needed"
        )
    if edge.sim3 is None:
        needed = thresholds.min_inliers
        short = [f"no transform fits any of {edge.matches} matches, {needed} inliers needed"]
    if short:
        return Verdict(False, "; ".join(short))
    agreement = (
        f"{edge.inliers} of {edge.matches} matches agree ({edge.share:.0%}) "
        f"over {edge.hull_share:.0%} of the smaller footprint"
    )
    if edge.share >= _WARP_SHARE:
        return Verdict(True, agreement)
    return Verdict(
        True, agreement, f"only {edge.share:.0%} of the matches agree: one of the two may be bent"
    )
