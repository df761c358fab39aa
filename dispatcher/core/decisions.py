"""What operators decided about pairs of a stitch's members: which of it counts. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

POINTS_OF_A_PIN = 3

Point = tuple[float, float, float]


class Verdict(StrEnum):
    APPROVE = "approve"
    REJECT = "reject"
    PIN = "pin"
    WITHDRAW = "withdraw"  # the earlier decision about the pair does not count any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """`points` of a pin: the same places in the frame of `source` and in that of `target`.
    `registrations`: SHA-256 of both members' sidecars at that time, as it is about those."""

    id: int
    at: float
    by: str
    verdict: Verdict
    source: str
    target: str
    points: tuple[tuple[Point, Point], ...] = ()
    registrations: tuple[str, str] = ("", "")


def in_force(decisions: Iterable[Decision], members: Iterable[str]) -> tuple[Decision, ...]:
    """Of each pair of `members` the latest decision, by id, less those withdrawn."""
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
    if decision.source == decision.target:
        return "a member has no pair with itself"
    if decision.verdict is Verdict.PIN and len(decision.points) < POINTS_OF_A_PIN:
        return f"{len(decision.points)} pairs of points, {POINTS_OF_A_PIN} are needed"
    return ""
