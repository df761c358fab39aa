"""How many metres a unit of the scene is: every source that says so, the one that is believed, and
where they disagree.

A source is the positions of the cameras (GPS or navigation), the altimeter or the depth by which
SfM has sized a member, or a ruler: a length that an operator knows between two places.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stitch.sim3 import Sim3
from stitch.territory import Member

POSITIONS, RULER = "positions", "ruler"
LEAST = 0.001  # of the scale: what no source is better than
_NAMES = {"altitude": "altimeter"}  # what SfM calls it
_PICKED_DEPTHS = 0.005  # one sigma of a place that a person picked: a centimetre at two metres
_SIGMAS = 3.0  # apart, and two sources contradict each other

Point = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Measure:
    """`metres` of a unit of the scene; `uncertainty`: one sigma, as a share of it; `count`: members
    or positions that it comes from."""

    source: str
    metres: float
    uncertainty: float
    count: int


@dataclass(frozen=True, slots=True)
class Ruler:
    """`length_m` metres lie between two places of a member, in the frame of its PLY."""

    member: int
    ends: tuple[Point, Point]
    length_m: float
    give_or_take_m: float
    words: str  # who and when


def of_members(members: Sequence[Member], besides: Sequence[str] = ()) -> list[Measure]:
    """By source, of those members whose own unit is known; none of the sources `besides`.

    The mean of the logarithms, weighed by what each is uncertain; as uncertain as that weight
    says, or as they differ, whichever is more.
    """
    told: dict[str, list[tuple[float, float]]] = {}
    for member in members:
        quality = member.sidecar.quality
        source = str(quality.get("scale_from", ""))
        source = _NAMES.get(source, source)
        if source and source not in besides:
            metres = float(quality.get("metres_per_unit", 1.0)) / member.pose.scale
            sigma = max(float(quality.get("scale_uncertainty", 0.0)), LEAST)
            told.setdefault(source, []).append((np.log(metres), sigma))
    found = []
    for source, each in told.items():
        logs, sigmas = np.array(each).T
        weights = 1.0 / sigmas**2
        mean = float(np.average(logs, weights=weights))
        free = len(each) - 1
        excess = float((weights * (logs - mean) ** 2).sum()) / free if free else 1.0
        sigma = float(np.sqrt(max(excess, 1.0) / weights.sum()))
        found.append(Measure(source, float(np.exp(mean)), max(sigma, LEAST), len(each)))
    return found


def of_ruler(ruler: Ruler, pose: Sim3, depth: float) -> Measure:
    """`pose` and median depth (own unit) of its member. Raises ValueError for a length of 0."""
    here, there = (np.array(end) for end in ruler.ends)
    apart = float(np.linalg.norm(here - there))
    if apart <= 0.0 or ruler.length_m <= 0.0:
        raise ValueError("a ruler needs a length, and two places that differ")
    picked = np.sqrt(2.0) * _PICKED_DEPTHS * depth / apart
    sigma = float(np.hypot(ruler.give_or_take_m / ruler.length_m, picked))
    return Measure(RULER, ruler.length_m / (pose.scale * apart), max(sigma, LEAST), 1)


def believed(measures: Sequence[Measure]) -> Measure | None:
    """The most certain one."""
    return min(measures, key=lambda one: one.uncertainty, default=None)


def conflicts(measures: Sequence[Measure]) -> list[str]:
    """Of every two that cannot both be right, a line for the operator."""
    lines = []
    for one, other in itertools.combinations(measures, 2):
        apart = abs(float(np.log(one.metres / other.metres)))
        if apart > _SIGMAS * float(np.hypot(one.uncertainty, other.uncertainty)):
            lines.append(
                f"the scale by {one.source} ({one.metres:.5g} m a unit, +-{one.uncertainty:.1%}) "
                f"and by {other.source} ({other.metres:.5g} m, +-{other.uncertainty:.1%}) differ "
                f"by {np.expm1(apart):.1%}"
            )
    return lines


def scale_entry(measures: Sequence[Measure]) -> dict[str, Any]:
    """Of the report."""
    best = believed(measures)
    return {
        "metric": best is not None,
        "from": best.source if best else "arbitrary",
        "metres_per_unit": best.metres if best else None,
        "uncertainty": round(best.uncertainty, 5) if best else None,
        "measures": [
            {
                "from": one.source,
                "metres_per_unit": one.metres,
                "uncertainty": round(one.uncertainty, 5),
                "count": one.count,
            }
            for one in measures
        ],
        "conflicts": conflicts(measures),
    }


def quality_of(measures: Sequence[Measure]) -> Mapping[str, float | str]:
    """What the scene's own sidecar says of its unit, for `of_members` of the next stitch."""
    best = believed(measures)
    if best is None:
        return {}
    return {
        "scale_from": best.source,
        "scale_uncertainty": best.uncertainty,
        "metres_per_unit": best.metres,
    }
