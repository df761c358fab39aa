"""Pairs of a stitch's members: what was found out about them, drawn, and decided by operators."""

from __future__ import annotations

import getpass
import itertools
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dispatcher.cli.asking import ask
from dispatcher.cli.stored import with_store
from dispatcher.core.decisions import Decision, Verdict, in_force, why_not
from dispatcher.core.model import JobState
from dispatcher.errors import UsageError
from dispatcher.pair_looking import MemberFiles, ask_library, known_edges, member_files
from dispatcher.requests import DECISIONS, decided
from dispatcher.settings import StitchConfig
from dispatcher.store.base import Store
from dispatcher.store.rows import Stitch

_MOST_PICTURES = 20  # of the pairs that say most: refused ones with many inliers first


async def known_stitch(store: Store, stitch: str) -> Stitch:
    """Raises UsageError."""
    found = await store.stitch(stitch)
    if found is None:
        raise UsageError("no such stitch", where=stitch, fix="`cosma stitch ls` lists them")
    return found


async def held_evidence(store: Store, stitch: Stitch) -> dict[str, Any]:
    """What the last attempt of a stitch that was refused left; {} for any other."""
    if stitch.job is None:
        return {}
    for attempt in reversed(await store.attempts(stitch.job)):
        outcome = (attempt.exit or {}).get("outcome") or {}
        evidence: dict[str, Any] = outcome.get("evidence") or {}
        return evidence if "pairs" in evidence else {}
    return {}


async def said_about(store: Store, stitch: Stitch) -> list[str]:
    """What operators decided about its pairs that counts for its next version, or for this one."""
    every = decided(await store.requests(kinds=DECISIONS))
    lines = []
    for one in in_force(every, stitch.members):
        day = time.strftime("%Y-%m-%d %H:%M", time.gmtime(one.at))
        used = "" if one.id in stitch.decisions else "; not in this version"
        what = f"{one.source} to {one.target}: {one.verdict}"
        if one.verdict is Verdict.SCALE:
            what = f"{one.source}: a length of {one.length_m:g} m"
        lines.append(f"{what} by {one.by}, {day} UTC{used}")
    return lines


def scale_lines(scale: Mapping[str, Any]) -> list[str]:
    """How large the scene is, and what contradicts that; of a report that tells it."""
    if not scale:
        return []
    if not scale["metric"]:
        return ["scale: arbitrary, nothing says what a metre is"]
    sure = scale.get("uncertainty")
    known = f", give or take {sure:.2%}" if sure is not None else ""
    line = f"scale: {scale['metres_per_unit']:.6g} m a unit, by {scale['from']}{known}"
    return [line, *(f"scale: {one}" for one in scale.get("conflicts", []))]


async def ratio_of(store: Store, stitch: Stitch) -> float:
    """Of the stitch's own configuration."""
    run = await store.run(stitch.job) if stitch.job else None
    config = (run.config if run else {}).get("stitch", {})
    return float(config.get("ratio", StitchConfig().ratio))


@dataclass(frozen=True, slots=True)
class Planned:
    """A stitch that is, or will be, of these members."""

    name: str
    members: list[MemberFiles]
    ratio: float
    edges: list[str]


async def planned_of_survey(store: Store, acquisition: str) -> list[Planned]:
    """Of each AUV with two or more segments that are done. Raises UsageError."""
    jobs = {job.id: job for job in await store.load_jobs(acquisition=acquisition)}
    by_auv: dict[str, list[str]] = {}
    for segment in await store.segments(acquisition=acquisition):
        if jobs[segment.job].state is JobState.DONE:
            by_auv.setdefault(segment.auv, []).append(segment.job)
    ratio = StitchConfig().ratio
    return [
        Planned(f"{acquisition}, {auv}", await member_files(store, sorted(members)), ratio, [])
        for auv, members in sorted(by_auv.items())
        if len(members) > 1
    ]


def draw(
    db: Path | None, stitch: str, edges: Sequence[dict[str, Any]], out: Path
) -> list[dict[str, Any]]:
    """Pictures of the pairs into `out`; what came of each. Raises UsageError, CosmaError."""

    async def work(store: Store) -> tuple[list[MemberFiles], float, list[str]]:
        found = await known_stitch(store, stitch)
        files = await member_files(store, found.members)
        return files, await ratio_of(store, found), await known_edges(store, found)

    files, ratio, known = with_store(db, work)
    telling = sorted(edges, key=lambda one: (bool(one["accepted"]), -int(one["inliers"])))
    pairs = [[one["source"], one["target"]] for one in telling[:_MOST_PICTURES]]
    if not pairs:
        pairs = [[b.name, a.name] for a, b in itertools.pairwise(files)]
    answer: list[dict[str, Any]] = ask_library(
        "pictures", files, ratio, edges=known, pairs=pairs, out=str(out.absolute())
    )
    return answer


def numbers(text: str, each: int) -> list[list[float]]:
    """ "1,2=3,4" as two lists of `each` numbers. Raises UsageError."""
    halves = [_floats(half) for half in text.split("=")]
    if [len(half) for half in halves] != [each, each]:
        names = ",".join("XYZ"[:each])
        raise UsageError("not a pair of places", where=text, fix=f"write it as {names}={names}")
    return halves


def place(text: str) -> list[float]:
    """ "1,2,3" as a place. Raises UsageError."""
    found = _floats(text)
    if len(found) != 3:
        raise UsageError("not a place", where=text, fix="write it as X,Y,Z")
    return found


def _floats(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        return []


async def reference_of(store: Store, stitch: str) -> str:
    """The member in whose frame the scene lies. Raises UsageError."""
    found = await known_stitch(store, stitch)
    reference = str(found.report.get("reference", ""))
    if not reference:
        raise UsageError(
            "it has no scene yet", where=stitch,
            fix="wait until it is done, or name the member whose PLY the places are from: --member",
        )  # fmt: skip
    return reference


def decide(
    db: Path | None,
    stitch: str,
    verdict: Verdict,
    source: str,
    target: str,
    *,
    clicks: Sequence[list[list[float]]] = (),
    points: Sequence[list[list[float]]] = (),
    length_m: float = 0.0,
    give_or_take_m: float = 0.0,
) -> None:
    """Ask for it; prints what comes of it. Raises UsageError when it makes no sense."""

    async def work(store: Store) -> tuple[Stitch, list[MemberFiles], float]:
        found = await known_stitch(store, stitch)
        if found.job is None:
            raise UsageError("nothing to decide", where=stitch, why="it is its one member as it is")
        for name in (source, target):
            if name not in found.members:
                known = ", ".join(found.members)
                raise UsageError("no such member", where=name, fix=f"{stitch} has {known}")
        files = await member_files(store, (source, target))
        return found, files, await ratio_of(store, found)

    found, files, ratio = with_store(db, work)
    places = list(points)
    if clicks:
        flat = [[*here, *there] for here, there in clicks]
        places += ask_library("lift", files, ratio, pairs=[[source, target]], clicks=flat)
    args: dict[str, Any] = {
        "by": f"{getpass.getuser()}@{socket.gethostname()}",
        "source": source,
        "target": target,
        "points": places,
        "registrations": [one.sha256 for one in files],
        "length_m": length_m,
        "give_or_take_m": give_or_take_m,
    }
    asked = Decision(
        id=0, at=0.0, by=str(args["by"]), verdict=verdict, source=source, target=target,
        points=tuple((_point(here), _point(there)) for here, there in places),
        length_m=length_m, give_or_take_m=give_or_take_m,
    )  # fmt: skip
    if why := why_not(asked, found.members):
        raise UsageError(f"{verdict} is refused", where=stitch, why=why)
    ask(db, found.job or "", verdict.value, args)


def _point(values: Sequence[float]) -> tuple[float, float, float]:
    x, y, z = values
    return float(x), float(y), float(z)
