"""What operators decided about pairs of a stitch's members: which of it counts. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from math import inf

POINTS_OF_A_PIN = 3

Point = tuple[float, float, float]


class Verdict(StrEnum):
    APPROVE = "approve"
    REJECT = "reject"
    PIN = "pin"
    SCALE = "scale"  # of one member, not of a pair: a length in it is known
    WITHDRAW = "withdraw"  # the earlier decision does not count any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`points` of a pin: the same places in the frame of `source` and in that of `target`; of a
    scale, whose source is its target: one pair, the ends of a length in metres. `registrations`:
    SHA-256 of both members' sidecars at that time, as it is about those."""

    id: int
    at: float
    by: str
    verdict: Verdict
    source: str
    target: str
    points: tuple[tuple[Point, Point], ...] = ()
    registrations: tuple[str, str] = ("", "")
    length_m: float = 0.0
    give_or_take_m: float = 0.0  # one sigma


def in_force(decisions: Iterable[Decision], members: Iterable[str]) -> tuple[Decision, ...]:
    """Of each pair of `members`, and of each alone, the latest decision, by id, less those
    withdrawn."""
    known = set(members)
    latest: dict[frozenset[str], Decision] = {}
    for decision in sorted(decisions, key=lambda one: one.id):
        pair = frozenset((decision.source, decision.target))
        if pair <= known:
            latest[pair] = decision
    kept = [one for one in latest.values() if one.verdict is not Verdict.WITHDRAW]
    return tuple(sorted(kept, key=lambda one: one.id))


def why_not(decision: Decision, members: Iterable[str]) -> str:
    """Why a stitch of `members` cannot take it, for the operator to read; "": it can."""
    known = tuple(members)
    for name in (decision.source, decision.target):
        if name not in known:
            return f"{name} is no member; it has {', '.join(known)}"
    if decision.verdict is Verdict.SCALE:
        return _why_no_length(decision)
    if decision.source == decision.target and decision.verdict is not Verdict.WITHDRAW:
        return "a member has no pair with itself"
    if decision.verdict is Verdict.PIN and len(decision.points) < POINTS_OF_A_PIN:
        return f"{len(decision.points)} pairs of points, {POINTS_OF_A_PIN} are needed"
    return ""


def _why_no_length(decision: Decision) -> str:
    ((here, there),) = decision.points
    if here == there:
        return "both ends are the same place"
    if not 0.0 < decision.length_m < inf:
        return f"a length of {decision.length_m:g} m"
    if not 0.0 <= decision.give_or_take_m < decision.length_m:
        return f"a length of {decision.length_m:g} m, give or take {decision.give_or_take_m:g} m"
    return ""
