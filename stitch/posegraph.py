"""One frame for many members from pairwise registrations, some of which may be wrong."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import gtsam
import numpy as np

from stitch.register import Edge
from stitch.sim3 import F64, Sim3

# What a good edge may be off by, of members scaled to unit size: 0.6 degrees, 1 %, 1 %.
SIGMAS = np.array([*[np.radians(0.6)] * 3, *[0.01] * 3, 0.01])
_ANCHOR_SIGMA = 1e-6
_CHI_SQUARE = 18.5  # of seven numbers, exceeded by one good edge in a hundred
_NEARLY = 4.0  # times that


@dataclass(frozen=True, slots=True)
class Solution:
    """`poses[i]` takes member i to the frame of its own component, which is that of the
    component's first member. `rejected` are positions in the list of edges; of these `undecided`
    are those whose ends lie in two components: they contradict each other, and nothing tells which
    is right. The others are wrong by what the rest of their component agrees on."""

    poses: tuple[Sim3, ...]
    components: tuple[tuple[int, ...], ...]  # largest first, over the edges that were kept
    rejected: tuple[int, ...]
    undecided: frozenset[int] = frozenset()

    @property
    def members(self) -> tuple[int, ...]:
        """Of the largest component, ascending."""
        return self.components[0]


def solve(
    extents: Sequence[tuple[F64, float]], edges: Sequence[Edge], sure: Collection[int] = ()
) -> Solution:
    """Poses of all members, each connected set by itself.

    `extents` gives each member's centre (3,) and size in its own frame. Every edge must have a
    Sim3. Start: spanning tree of the most inliers; then truncated least squares by graduated
    non-convexity (Yang et al. 2020, in gtsam), which drops edges the loops contradict. Where one
    edge stands against another and no loop confirms either, neither is kept: its two sides are
    components. A wrong edge in no loop cannot be noticed here. `sure`: positions of edges that
    need no loop to confirm them; of such against each other neither is kept.
    """
    unit = [Sim3(size, np.eye(3), centre) for centre, size in extents]
    everyone = components(len(unit), edges)
    poses: dict[int, Sim3] = {}
    rejected: list[int] = []
    for group in everyone:
        inside = [k for k, edge in enumerate(edges) if edge.source in group]
        start = _spanning_tree(group, [edges[k] for k in inside], unit)
        if len(inside) > len(group) - 1:
            start, kept = _truncated_least_squares(group, inside, edges, unit, start)
            if len(kept) < len(inside):
                start, kept = _Vote(group, inside, edges, unit, sure).settled(start, kept)
            rejected += [k for k in inside if k not in kept]
        poses |= start
    groups = components(len(unit), [e for k, e in enumerate(edges) if k not in set(rejected)])
    part = {i: group for group in groups for i in group}
    frames = {
        i: (poses[group[0]] @ unit[group[0]].inverse()).inverse() for group in groups for i in group
    }
    first = {group[0] for group in groups}
    return Solution(
        poses=tuple(
            Sim3.identity() if i in first else frames[i] @ poses[i] @ unit[i].inverse()
            for i in range(len(unit))
        ),
        components=groups,
        rejected=tuple(sorted(rejected)),
        undecided=frozenset(k for k in rejected if part[edges[k].source] != part[edges[k].target]),
    )


def components(count: int, edges: Sequence[Edge]) -> tuple[tuple[int, ...], ...]:
    """Connected sets of members, largest first, then by lowest number."""
    root = list(range(count))

    def find(i: int) -> int:
        while root[i] != i:
            i = root[i]
        return i

    for edge in edges:
        root[find(edge.source)] = find(edge.target)
    groups: dict[int, list[int]] = {}
    for i in range(count):
        groups.setdefault(find(i), []).append(i)
    return tuple(sorted(map(tuple, groups.values()), key=lambda group: (-len(group), group)))


def _spanning_tree(
    group: tuple[int, ...], edges: Sequence[Edge], unit: Sequence[Sim3]
) -> dict[int, Sim3]:
    """Prim's algorithm on the inlier counts; the first of the group is the anchor."""
    poses = {group[0]: Sim3.identity()}
    while len(poses) < len(group):
        crossing = [e for e in edges if (e.source in poses) != (e.target in poses)]
        best = max(crossing, key=lambda edge: edge.inliers)
        step = normalised(best, unit)
        if best.target in poses:
            poses[best.source] = poses[best.target] @ step
        else:
            poses[best.target] = poses[best.source] @ step.inverse()
    return poses


def _truncated_least_squares(
    group: tuple[int, ...],
    inside: Sequence[int],
    edges: Sequence[Edge],
    unit: Sequence[Sim3],
    start: dict[int, Sim3],
) -> tuple[dict[int, Sim3], set[int]]:
    """Poses of the group, and which edges they agree with."""
    graph, values = _graph(group, inside, edges, unit, start)
    parameters = gtsam.GncLMParams(gtsam.LevenbergMarquardtParams())
    parameters.setLossType(gtsam.GncLossType.TLS)
    parameters.setKnownInliers([len(inside)])
    optimizer = gtsam.GncLMOptimizer(graph, values, parameters)
    result = optimizer.optimize()
    weights = np.asarray(optimizer.getWeights())[: len(inside)]
    poses = {i: _from_gtsam(result.atSimilarity3(i)) for i in group}
    return poses, {k for k, weight in zip(inside, weights, strict=True) if weight >= 0.5}


@dataclass(frozen=True, slots=True)
class _Vote:
    """The edges of a group, between every two sides of it that not all of them put together alike.
    An edge has one vote; one that is sure has two."""

    group: tuple[int, ...]
    inside: Sequence[int]
    edges: Sequence[Edge]
    unit: Sequence[Sim3]
    sure: Collection[int]

    def settled(self, poses: dict[int, Sim3], kept: set[int]) -> tuple[dict[int, Sim3], set[int]]:
        """Every side put where the most edges want it (truncated least squares may end where one
        wrong edge holds it away from several that agree). No edge is kept where as many agree on
        something else, nor one that no loop confirms where others would close a loop."""
        for _ in self.inside:
            better = self._better(poses, kept)
            if better is None:
                break
            poses, kept = better
        dropped = self.unconfirmed(kept).difference(self.sure)
        for one, other in self._sides(kept):
            agreed, rival, _ = self._votes(one, other, poses, kept)
            if agreed and self._worth(rival)[0] >= self._worth(agreed)[0]:
                dropped |= agreed
        return poses, kept - dropped

    def _better(
        self, poses: dict[int, Sim3], kept: set[int]
    ) -> tuple[dict[int, Sim3], set[int]] | None:
        for one, other in self._sides(kept):
            agreed, rival, moved = self._votes(one, other, poses, kept)
            if self._worth(rival)[0] <= max(1, self._worth(agreed)[0]):
                continue
            touched = {k for k in self.inside if self._ends(k) <= one | other}
            held, solved = kept & touched - agreed | rival, moved
            for slack in (_NEARLY, 1.0):  # what only nearly agrees may do so once it is heard
                solved = solved | _least_squares(
                    tuple(sorted(one | other)), sorted(held), self.edges, self.unit, solved
                )
                held = {k for k in touched if _agree(self.edges[k], self.unit, solved, slack)}
            found = kept - touched | held
            if self._worth(found)[0] > self._worth(kept)[0]:
                return solved, found
        return None

    def _votes(
        self, one: frozenset[int], other: frozenset[int], poses: dict[int, Sim3], kept: set[int]
    ) -> tuple[set[int], set[int], dict[int, Sim3]]:
        """Of the edges between two sides those that are kept, the most that agree otherwise, and
        the poses with the first side where these want it."""
        across = [
            k
            for k in self.inside
            if len(e := self._ends(k) & one) == 1 and self._ends(k) - e <= other
        ]
        agreed, rival, moved = kept.intersection(across), set[int](), poses
        for k in across:
            if k in agreed or k in rival:
                continue
            end = min(self._ends(k) & one)
            shift = _wanted(end, self.edges[k], self.unit, poses) @ poses[end].inverse()
            there = poses | {i: shift @ poses[i] for i in one}
            found = {k for k in across if _agree(self.edges[k], self.unit, there)} - agreed
            if self._worth(found) > self._worth(rival):
                rival, moved = found, there
        return agreed, rival, moved

    def _sides(self, kept: set[int]) -> Iterator[tuple[frozenset[int], frozenset[int]]]:
        """Two sides that other than the kept edges join, each connected by kept ones: two parts;
        what one edge alone holds; a member, with all that hangs on it, and the rest."""
        parts = self._parts(self.group, kept)
        part_of = {i: part for part in parts for i in part}
        seen = set()
        for k in self.inside:
            edge = self.edges[k]
            one, other = part_of[edge.source], part_of[edge.target]
            if one != other and (one, other) not in seen and (other, one) not in seen:
                seen.add((one, other))
                yield one, other
        for k in sorted(self.unconfirmed(kept)):
            end = self.edges[k].source
            one = next(p for p in self._parts(part_of[end], kept - {k}) if end in p)
            yield one, part_of[end] - one
        doubted = {i for k in self.inside if k not in kept for i in self._ends(k)}
        for i in sorted(doubted):
            rest = self._parts(part_of[i] - {i}, kept)
            if rest:
                yield part_of[i] - rest[0], rest[0]

    def unconfirmed(self, kept: set[int]) -> set[int]:
        """What alone holds two sides, where an edge that is not kept would close a loop."""
        return bridges(self.edges, kept) - bridges(self.edges, self.inside)

    def _parts(self, among: Collection[int], kept: set[int]) -> list[frozenset[int]]:
        """Sets of members that kept edges connect, largest first."""
        chosen = [self.edges[k] for k in sorted(kept) if self._ends(k) <= set(among)]
        every = components(max(self.group) + 1, chosen)
        return [frozenset(part) for part in every if part[0] in among]

    def _ends(self, k: int) -> frozenset[int]:
        return frozenset((self.edges[k].source, self.edges[k].target))

    def _worth(self, chosen: Collection[int]) -> tuple[int, int]:
        votes = len(chosen) + sum(k in self.sure for k in chosen)
        return votes, sum(self.edges[k].inliers for k in chosen)


def bridges(edges: Sequence[Edge], chosen: Collection[int]) -> set[int]:
    """Those of the `chosen` edges that lie in no loop of them."""
    at: dict[int, list[tuple[int, int]]] = {}
    for k in chosen:
        one, other = edges[k].source, edges[k].target
        at.setdefault(one, []).append((other, k))
        at.setdefault(other, []).append((one, k))
    found: set[int] = set()
    order: dict[int, int] = {}
    lowest: dict[int, int] = {}  # that a member or what was found from it reaches otherwise
    for first in at:
        if first in order:
            continue
        order[first] = lowest[first] = len(order)
        path = [(first, -1, iter(at[first]))]
        while path:
            member, came, onward = path[-1]
            for other, k in onward:
                if k == came:
                    continue
                if other not in order:
                    order[other] = lowest[other] = len(order)
                    path.append((other, k, iter(at[other])))
                    break
                lowest[member] = min(lowest[member], order[other])
            else:
                path.pop()
                if path:
                    before = path[-1][0]
                    lowest[before] = min(lowest[before], lowest[member])
                    if lowest[member] > order[before]:
                        found.add(came)
    return found


def _wanted(member: int, edge: Edge, unit: Sequence[Sim3], poses: dict[int, Sim3]) -> Sim3:
    """Where the edge puts one of its ends, by the other."""
    step = normalised(edge, unit)
    if edge.source == member:
        return poses[edge.target] @ step
    return poses[edge.source] @ step.inverse()


def _agree(edge: Edge, unit: Sequence[Sim3], poses: dict[int, Sim3], slack: float = 1.0) -> bool:
    error = normalised(edge, unit).inverse() @ poses[edge.target].inverse() @ poses[edge.source]
    angle = error.angle_to(Sim3.identity())
    off = np.array([np.radians(angle), np.linalg.norm(error.translation), np.log(error.scale)])
    return bool(((off / SIGMAS[[0, 3, 6]]) ** 2).sum() < slack * _CHI_SQUARE)


def _least_squares(
    group: tuple[int, ...],
    chosen: Sequence[int],
    edges: Sequence[Edge],
    unit: Sequence[Sim3],
    start: dict[int, Sim3],
) -> dict[int, Sim3]:
    graph, values = _graph(group, chosen, edges, unit, start)
    result = gtsam.LevenbergMarquardtOptimizer(graph, values).optimize()
    return {i: _from_gtsam(result.atSimilarity3(i)) for i in group}


def _graph(
    group: tuple[int, ...],
    chosen: Sequence[int],
    edges: Sequence[Edge],
    unit: Sequence[Sim3],
    start: dict[int, Sim3],
) -> tuple[gtsam.NonlinearFactorGraph, gtsam.Values]:
    """A factor for each edge, in order, then the anchor of the first member."""
    graph = gtsam.NonlinearFactorGraph()
    values = gtsam.Values()
    noise = gtsam.noiseModel.Diagonal.Sigmas(SIGMAS)
    for k in chosen:
        measured = _to_gtsam(normalised(edges[k], unit))
        graph.add(gtsam.BetweenFactorSimilarity3(edges[k].target, edges[k].source, measured, noise))
    for i in group:
        values.insert(i, _to_gtsam(start[i]))
    anchor = gtsam.noiseModel.Isotropic.Sigma(7, _ANCHOR_SIGMA)
    graph.add(gtsam.PriorFactorSimilarity3(group[0], _to_gtsam(start[group[0]]), anchor))
    return graph, values


def normalised(edge: Edge, unit: Sequence[Sim3]) -> Sim3:
    """The edge between members scaled to unit size about their centres, so that one sigma fits
    all and an origin far from the data does not turn angle errors into translation errors."""
    if edge.sim3 is None:
        raise ValueError(f"edge {edge.source} -> {edge.target} has no transform")
    return unit[edge.target].inverse() @ edge.sim3 @ unit[edge.source]


def _to_gtsam(pose: Sim3) -> gtsam.Similarity3:
    """gtsam's convention is s (R x + t')."""
    return gtsam.Similarity3(gtsam.Rot3(pose.rotation), pose.translation / pose.scale, pose.scale)


def _from_gtsam(pose: gtsam.Similarity3) -> Sim3:
    scale = pose.scale()
    return Sim3(scale, pose.rotation().matrix(), scale * pose.translation())
