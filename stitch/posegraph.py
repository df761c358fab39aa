"""One frame for many members from pairwise registrations, some of which may be wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gtsam
import numpy as np

from stitch.register import Edge
from stitch.sim3 import F64, Sim3

# What a good edge may be off by, of members scaled to unit size: 0.6 degrees, 1 %, 1 %.
SIGMAS = np.array([*[np.radians(0.6)] * 3, *[0.01] * 3, 0.01])
_ANCHOR_SIGMA = 1e-6
_CHI_SQUARE = 18.5  # of seven numbers, exceeded by one good edge in a hundred


@dataclass(frozen=True, slots=True)
class Solution:
    """`poses[i]` takes member i to the frame of its own component, which is that of the
    component's first member. `rejected` are positions in the list of edges."""

    poses: tuple[Sim3, ...]
    components: tuple[tuple[int, ...], ...]  # largest first, over the edges that were kept
    rejected: tuple[int, ...]

    @property
    def members(self) -> tuple[int, ...]:
        """Of the largest component, ascending."""
        return self.components[0]


def solve(extents: Sequence[tuple[F64, float]], edges: Sequence[Edge]) -> Solution:
    """Poses of all members, each connected set by itself.

    `extents` gives each member's centre (3,) and size in its own frame. Every edge must have a
    Sim3. Start: spanning tree of the most inliers; then truncated least squares by graduated
    non-convexity (Yang et al. 2020, in gtsam), which drops edges the loops contradict. A wrong
    edge in no loop cannot be noticed here.
    """
    unit = [Sim3(size, np.eye(3), centre) for centre, size in extents]
    everyone = components(len(unit), edges)
    poses: dict[int, Sim3] = {}
    rejected: list[int] = []
    for group in everyone:
        inside = [k for k, edge in enumerate(edges) if edge.source in group]
        start = _spanning_tree(group, [edges[k] for k in inside], unit)
        if len(inside) > len(group) - 1:
            start, dropped = _truncated_least_squares(group, inside, edges, unit, start)
            rejected += dropped
        poses |= start
    kept = [edge for k, edge in enumerate(edges) if k not in set(rejected)]
    groups = components(len(unit), kept)
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
) -> tuple[dict[int, Sim3], list[int]]:
    graph, values = _graph(group, inside, edges, unit, start)
    parameters = gtsam.GncLMParams(gtsam.LevenbergMarquardtParams())
    parameters.setLossType(gtsam.GncLossType.TLS)
    parameters.setKnownInliers([len(inside)])
    optimizer = gtsam.GncLMOptimizer(graph, values, parameters)
    result = optimizer.optimize()
    weights = np.asarray(optimizer.getWeights())[: len(inside)]
    poses = {i: _from_gtsam(result.atSimilarity3(i)) for i in group}
    kept = {k for k, weight in zip(inside, weights, strict=True) if weight >= 0.5}
    if len(kept) < len(inside):
        poses, kept = _reseated(group, inside, edges, unit, poses, kept)
    return poses, [k for k in inside if k not in kept]


def _reseated(
    group: tuple[int, ...],
    inside: Sequence[int],
    edges: Sequence[Edge],
    unit: Sequence[Sim3],
    poses: dict[int, Sim3],
    kept: set[int],
) -> tuple[dict[int, Sim3], set[int]]:
    """A member that a wrong edge holds away from several right ones that agree is a minimum, too:
    it is put where most of its edges want it, when that lets more edges of the whole agree, or as
    many with more inliers."""

    def worth(agreed: set[int]) -> tuple[int, int]:
        return len(agreed), sum(edges[k].inliers for k in agreed)

    for _ in range(len(group)):
        better = None
        for i in group[1:]:
            mine = [k for k in inside if i in (edges[k].source, edges[k].target)]
            if all(k in kept for k in mine):
                continue
            wanted = [_wanted(i, edges[k], unit, poses) for k in mine]
            votes = [
                worth({k for k in mine if _agree(edges[k], unit, poses | {i: pose})})
                for pose in wanted
            ]
            if max(votes) <= worth(kept.intersection(mine)):
                continue
            moved = poses | {i: wanted[votes.index(max(votes))]}
            agreed = {k for k in inside if _agree(edges[k], unit, moved)}
            if worth(agreed) > worth(kept) and len(components_of(group, edges, agreed)) == 1:
                better = _least_squares(group, sorted(agreed), edges, unit, moved), agreed
                break
        if better is None:
            return poses, kept
        poses = better[0]
        kept = {k for k in inside if _agree(edges[k], unit, poses)}
    return poses, kept


def components_of(
    group: tuple[int, ...], edges: Sequence[Edge], chosen: set[int]
) -> list[tuple[int, ...]]:
    """Connected sets of the members of `group` under the `chosen` edges."""
    every = components(max(group) + 1, [edges[k] for k in chosen])
    return [found for found in every if found[0] in group]


def _wanted(member: int, edge: Edge, unit: Sequence[Sim3], poses: dict[int, Sim3]) -> Sim3:
    """Where the edge puts one of its ends, by the other."""
    step = normalised(edge, unit)
    if edge.source == member:
        return poses[edge.target] @ step
    return poses[edge.source] @ step.inverse()


def _agree(edge: Edge, unit: Sequence[Sim3], poses: dict[int, Sim3]) -> bool:
    error = normalised(edge, unit).inverse() @ poses[edge.target].inverse() @ poses[edge.source]
    angle = error.angle_to(Sim3.identity())
    off = np.array([np.radians(angle), np.linalg.norm(error.translation), np.log(error.scale)])
    return bool(((off / SIGMAS[[0, 3, 6]]) ** 2).sum() < _CHI_SQUARE)


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
