"""How the members of a stitch lie: all pairs, their verdicts, and one frame for each part."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stitch import known_parts, posegraph, priors
from stitch.candidates import candidates
from stitch.earlier_poses import Earlier, Standing
from stitch.known_edges import KnownEdges
from stitch.pairs import Known, register_pair
from stitch.pinned import Point, pin
from stitch.publish import edge_entry
from stitch.register import Edge
from stitch.score import Thresholds, Verdict, judge

_TILT = np.radians(10.0)  # between both members' gravity: a camera's IMU is within 2
_SPREADS = 4.0
_CLOUD_DEPTH = 0.3  # of the extent, for want of cameras


@dataclass(frozen=True, slots=True)
class Said:
    """What an operator decided about a pair; `source` and `target` are numbers of members."""

    verdict: str  # approve | reject | pin
    source: int
    target: int
    words: str  # who and when
    points: tuple[tuple[Point, Point], ...] = ()


@dataclass(frozen=True, slots=True)
class Party:
    """A member as pairs see it. `contents` (SHA-256 of its sidecar, or of its PLY) tells it from
    any other."""

    known: Known
    contents: str

    def depth(self) -> float:
        sidecar = self.known.sidecar
        return sidecar.median_depth if sidecar else _CLOUD_DEPTH * self.known.extent()[1]


@dataclass(frozen=True, slots=True)
class Evidence:
    """All pairs, and what the accepted ones say together: those that do not are refused."""

    edges: tuple[Edge, ...]
    verdicts: tuple[Verdict, ...]
    solved: known_parts.Solved
    reused: int  # pairs that were known before

    @property
    def standing(self) -> Standing:
        return self.solved.standing

    @property
    def placed(self) -> priors.Placed:
        return self.standing.placed

    @property
    def solution(self) -> posegraph.Solution:
        return self.placed.solution

    @property
    def accepted(self) -> list[Edge]:
        """Those that hold the parts together."""
        pairs = zip(self.edges, self.verdicts, strict=True)
        return [edge for edge, verdict in pairs if verdict.accepted]

    def entries(self, names: Sequence[str]) -> list[dict[str, Any]]:
        return [
            edge_entry(edge, names, verdict)
            for edge, verdict in zip(self.edges, self.verdicts, strict=True)
        ]


def pairs_of(parties: Sequence[Party], said: Sequence[Said]) -> tuple[tuple[int, int], ...]:
    """(target, source) worth registering: those of `candidates`, each member that is but a cloud
    with all others, and what operators named."""
    rich = [i for i, party in enumerate(parties) if party.known.sidecar is not None]
    sidecars = [s for party in parties if (s := party.known.sidecar) is not None]
    found = {(rich[a], rich[b]) for a, b in candidates(sidecars)}
    poor = set(range(len(parties))) - set(rich)
    found |= {(min(i, j), max(i, j)) for i in poor for j in range(len(parties)) if i != j}
    found |= {(min(s.source, s.target), max(s.source, s.target)) for s in said}
    return tuple(sorted(found))


def gather(
    parties: Sequence[Party],
    readings: Sequence[priors.Readings],
    fit: priors.Fit,
    thresholds: Thresholds,
    ratio: float,
    known: KnownEdges,
    said: Sequence[Said] = (),
    earlier: Sequence[Earlier] = (),
    on_pair: Callable[[int, int, Edge, Verdict], None] = lambda *_: None,
) -> Evidence:
    """Registers each pair that `known` does not hold yet (and tells it), takes what operators
    `said`, and solves those parts of the graph that it does not hold; what did not move since
    `earlier` stays. `on_pair` is told the
    pairs done, of how many, and the last. Raises FileUnreadable."""
    pairs = pairs_of(parties, said)
    words = {frozenset((one.source, one.target)): one for one in said}
    edges: list[Edge] = []
    verdicts: list[Verdict] = []
    sure: set[int] = set()
    reused = 0
    for done, (target, source) in enumerate(pairs, start=1):
        one, other = parties[source], parties[target]
        edge = known.get((source, one.contents), (target, other.contents))
        reused += edge is not None
        if edge is None:
            edge = register_pair(source, one.known, target, other.known, ratio)
            known.put(edge, one.contents, other.contents)
        verdict = _upright(judge(edge, thresholds), edge, readings)
        decided = words.get(frozenset((source, target)))
        if decided is not None:
            edge, verdict = _as_said(decided, edge, verdict, parties)
        if edge.method == "frames" or decided is not None:
            sure.add(len(edges))
        edges.append(edge)
        verdicts.append(verdict)
        on_pair(done, len(pairs), edge, verdict)
    accepted = [k for k, verdict in enumerate(verdicts) if verdict.accepted]
    extents = [party.known.extent() for party in parties]
    held = [edges[k] for k in accepted]
    contents = [party.contents for party in parties]
    certain = [n for n, k in enumerate(accepted) if k in sure]
    solved = known_parts.solve(
        contents, extents, held, certain, readings, fit, earlier, known.parts
    )
    solution = solved.standing.placed.solution
    for n in solution.rejected:
        verdicts[accepted[n]] = _overruled(verdicts[accepted[n]], n in solution.undecided)
    return Evidence(tuple(edges), tuple(verdicts), solved, reused)


def _overruled(verdict: Verdict, undecided: bool) -> Verdict:
    reason = "contradicted by the other pairs"
    if undecided:
        reason = (
            "other pairs contradict it, and no loop of pairs tells which is right: none of them is "
            "taken"
        )
    return dataclasses.replace(
        verdict,
        accepted=False,
        reason=f"{reason}; by itself: {verdict.reason}",
        undecided=undecided,
    )


def _upright(verdict: Verdict, edge: Edge, readings: Sequence[priors.Readings]) -> Verdict:
    """A pair that both members' gravity contradicts is no pair, loops or not."""
    source, target = readings[edge.source], readings[edge.target]
    lean = priors.tilt(edge, source, target)
    if lean is None or not verdict.accepted:
        return verdict
    allowed = max(_TILT, _SPREADS * (source.spread + target.spread))
    if lean <= allowed:
        return verdict
    return Verdict(
        False,
        f"under it the gravity that both cameras felt differs by {np.degrees(lean):.0f} degrees, "
        f"{np.degrees(allowed):.0f} allowed",
    )


def _as_said(
    said: Said, edge: Edge, verdict: Verdict, parties: Sequence[Party]
) -> tuple[Edge, Verdict]:
    if said.verdict == "reject":
        return edge, Verdict(False, f"rejected by {said.words}; it was: {verdict.reason}")
    if said.verdict == "pin":
        try:
            made = pin(said.source, said.target, said.points, parties[said.target].depth())
        except ValueError as error:
            return edge, Verdict(False, f"pinned by {said.words}, but {error}")
        off = f"{made.residual:.1%} of the depth off"
        return made, Verdict(True, f"pinned by {said.words}, {off}")
    if edge.sim3 is None:
        return edge, Verdict(
            False, f"approved by {said.words}, but no transform fits: pin it by three points"
        )
    return edge, dataclasses.replace(
        verdict, accepted=True, reason=f"approved by {said.words}; it was: {verdict.reason}"
    )
