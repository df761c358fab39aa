"""Which stitches an acquisition can have now, from the states of its segments and stitches."""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from dispatcher.core.model import SETTLED, Job, JobKind, JobState, Stage

_CROSS = "cross"
_LEAST_EARLY = 2  # segments that are done: one alone would only pass through


class StitchLevel(StrEnum):
    PER_AUV = "per_auv"
    CROSS_AUV = "cross_auv"


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentView:
    job: str
    auv: str
    name: str
    state: JobState
    created_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sooner:
    """When an AUV gets a first stitch although some of its segments are still at work: once this
    share of them is done, or so long after the last one was ingested. None: not before the end."""

    quorum: float | None = None
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StitchView:
    """A stitch that exists. `members` are job ids (per_auv) or stitch ids (cross_auv). `outdated`:
    operators have decided about its pairs since."""

    id: str
    level: StitchLevel
    auv: str | None  # None for cross_auv
    members: tuple[str, ...]
    state: JobState
    version: int = 1
    outdated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StitchPlan:
    """A stitch to make. A pass-through has one member and needs no work on a host."""

    id: str
    level: StitchLevel
    auv: str | None
    members: tuple[str, ...]
    passthrough: bool
    version: int


def stitch_id(acquisition: str, auv: str | None, version: int) -> str:
    """The same inputs always get the same id, so that planning twice creates one stitch."""
    return f"{acquisition}-stitch-{_CROSS if auv is None else _safe(auv)}-v{version}"


def _safe(auv: str) -> str:
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", auv)
    if safe == auv != _CROSS:
        return safe
    # Two names must not become one.
    return f"{safe}-{hashlib.sha256(auv.encode()).hexdigest()[:6]}"


def stitch_job(acquisition: str, plan: StitchPlan, created_at: float) -> Job:
    """The job that makes a stitch which is no pass-through."""
    return Job(
        id=plan.id,
        kind=JobKind.STITCH,
        acquisition=acquisition,
        name=plan.auv or "all AUVs",
        auv=plan.auv,
        created_at=created_at,
        stage=Stage.STITCH,
    )


def plan_stitches(
    acquisition: str,
    segments: Iterable[SegmentView],
    stitches: Iterable[StitchView],
    sooner: Sooner | None = None,
    now: float = 0.0,
) -> tuple[StitchPlan, ...]:
    """Stitches that can be made and do not exist; a held or failed member is left out.

    An AUV is stitched when all its segments are terminal; by `sooner`, once before that, of those
    that are done by then. The AUVs are joined when all that is terminal.

    A stitch is not planned again while one with the same members and decisions exists, unless that
    one was cancelled: retrying a held stitch is the operator's decision.
    """
    by_auv: dict[str, list[SegmentView]] = defaultdict(list)
    for segment in segments:
        by_auv[segment.auv].append(segment)
    existing = list(stitches)
    plans: list[StitchPlan] = []
    for auv in sorted(by_auv):
        first = not any(s.auv == auv for s in existing if s.level is StitchLevel.PER_AUV)
        early = first and sooner is not None and _soon_enough(by_auv[auv], sooner, now)
        members = _done_members(by_auv[auv], early=early)
        if members:
            plans += _unless_made(acquisition, StitchLevel.PER_AUV, auv, members, existing)
    if not plans and _all_settled(by_auv, existing):
        latest = _latest_done(existing)
        if len(latest) >= 2:
            members = tuple(latest[auv].id for auv in sorted(latest))
            plans += _unless_made(acquisition, StitchLevel.CROSS_AUV, None, members, existing)
    return tuple(plans)


def _soon_enough(segments: Sequence[SegmentView], sooner: Sooner, now: float) -> bool:
    done = sum(segment.state is JobState.DONE for segment in segments)
    if done < _LEAST_EARLY:
        return False
    if sooner.quorum is not None and done >= sooner.quorum * len(segments):
        return True
    return now >= _deadline(segments, sooner)


def _deadline(segments: Iterable[SegmentView], sooner: Sooner) -> float:
    """Wall clock; inf where there is none."""
    last = max((segment.created_at for segment in segments), default=math.inf)
    return math.inf if sooner.deadline_s is None else last + sooner.deadline_s


def deadlines(
    segments: Mapping[str, Sequence[SegmentView]], sooner: Mapping[str, Sooner], now: float
) -> Iterator[tuple[float, str]]:
    """When, after `now`, which acquisition gets stitches although segments are still at work."""
    for acquisition, known in sooner.items():
        at = _deadline(segments.get(acquisition, ()), known)
        if now < at < math.inf:
            yield at, acquisition


def _done_members(segments: Sequence[SegmentView], *, early: bool) -> tuple[str, ...]:
    """Job ids in the order of the segments' names; none while one is still at work, unless
    `early`."""
    if not early and any(segment.state not in SETTLED for segment in segments):
        return ()
    done = [s for s in segments if s.state is JobState.DONE]
    return tuple(s.job for s in sorted(done, key=lambda s: (s.name, s.job)))


def _all_settled(by_auv: dict[str, list[SegmentView]], stitches: Sequence[StitchView]) -> bool:
    return all(s.state in SETTLED for group in by_auv.values() for s in group) and all(
        s.state in SETTLED for s in stitches if s.level is StitchLevel.PER_AUV
    )


def _latest_done(stitches: Sequence[StitchView]) -> dict[str, StitchView]:
    latest: dict[str, StitchView] = {}
    for stitch in stitches:
        if stitch.level is not StitchLevel.PER_AUV or stitch.state is not JobState.DONE:
            continue
        if stitch.auv is None:
            raise ValueError(f"per-AUV stitch {stitch.id} names no AUV")
        known = latest.get(stitch.auv)
        if known is None or stitch.version > known.version:
            latest[stitch.auv] = stitch
    return latest


def _unless_made(
    acquisition: str,
    level: StitchLevel,
    auv: str | None,
    members: tuple[str, ...],
    stitches: Sequence[StitchView],
) -> list[StitchPlan]:
    versions = [s for s in stitches if s.level is level and s.auv == auv]
    same = [s for s in versions if set(s.members) == set(members)]
    newest = max(same, key=lambda s: s.version, default=None)
    if any(s.state is not JobState.CANCELLED for s in same) and newest and not newest.outdated:
        return []
    version = 1 + max((s.version for s in versions), default=0)
    return [
        StitchPlan(
            id=stitch_id(acquisition, auv, version),
            level=level,
            auv=auv,
            members=members,
            passthrough=len(members) == 1,
            version=version,
        )
    ]
