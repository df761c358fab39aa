"""Parts of a stitch that an earlier version has solved: where the same pairs hold the same members,
nothing is solved again, and everything lies to the last bit where it lay."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stitch import posegraph, priors
from stitch.earlier_poses import Earlier, Standing, stand
from stitch.known_edges import code_of
from stitch.register import Edge
from stitch.sim3 import F64, Sim3

_ENTRY = "known_parts"  # the module that solves: with other code a part is solved anew

Group = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Solved:
    """Where all members lie, and that by part for the next version. `rejected`: positions in the
    list of edges, as `posegraph.Solution` has them."""

    standing: Standing
    parts: Mapping[str, Any]
    reused: int  # parts that were known before


@dataclass(frozen=True, slots=True)
class _Part:
    """What pairs connect, and what came of it: one or more components, each in the frame of one of
    its members. All by contents."""

    poses: Mapping[str, Sim3]
    frames: frozenset[str]
    rejected: frozenset[tuple[str, str]]  # source, target


def solve(
    contents: Sequence[str],
    extents: Sequence[tuple[F64, float]],
    edges: Sequence[Edge],
    sure: Collection[int],
    readings: Sequence[priors.Readings],
    fit: priors.Fit,
    earlier: Sequence[Earlier],
    known: Mapping[str, Any],
) -> Solved:
    """`posegraph.solve`, `priors.place` and `earlier_poses.stand`, each of those parts only that
    `known` (`Solved.parts` of versions before) does not hold."""
    groups = [g for g in posegraph.components(len(extents), edges) if len(g) > 1]
    keys = {group: _key(group, edges, sure, contents) for group in groups}
    found = {group: _read(known[key]) for group, key in keys.items() if key in known}
    same = {i for group in found for i in group}
    fresh = [k for k, edge in enumerate(edges) if edge.source not in same]
    own = [edges[k] for k in fresh]
    solution = posegraph.solve(extents, own, [n for n, k in enumerate(fresh) if k in sure])
    placed = priors.place(solution, extents, own, readings, fit)
    holding = [edge for n, edge in enumerate(own) if n not in set(solution.rejected)]
    standing = stand(placed, contents, extents, holding, earlier)
    rejected = [fresh[n] for n in solution.rejected]
    standing = _with_known(found, standing, rejected, contents, edges, readings, fit, earlier)
    parts = {key: _written(group, standing, contents, edges) for group, key in keys.items()}
    return Solved(standing, parts, len(found))


def _with_known(
    found: Mapping[Group, _Part],
    standing: Standing,
    rejected: Sequence[int],
    contents: Sequence[str],
    edges: Sequence[Edge],
    readings: Sequence[priors.Readings],
    fit: priors.Fit,
    earlier: Sequence[Earlier],
) -> Standing:
    """What was solved now, with numbers of all `edges`, and what is known."""
    placed = standing.placed
    same = {i: part for group, part in found.items() for i in group}
    left = set(rejected) | {
        k
        for k, e in enumerate(edges)
        if e.source in same and (contents[e.source], contents[e.target]) in same[e.source].rejected
    }
    every = posegraph.components(
        len(contents), [edge for k, edge in enumerate(edges) if k not in left]
    )
    own = dict(zip(placed.solution.components, standing.frames, strict=True))
    frames = tuple(
        own[group]
        if group[0] not in same
        else next(i for i in group if contents[i] in same[i].frames)
        for group in every
    )
    component = {i: n for n, group in enumerate(every) for i in group}
    solution = posegraph.Solution(
        poses=tuple(
            same[i].poses[contents[i]] if i in same else pose
            for i, pose in enumerate(placed.solution.poses)
        ),
        components=every,
        rejected=tuple(sorted(left)),
        undecided=frozenset(
            k for k in left if component[edges[k].source] != component[edges[k].target]
        ),
    )
    placed = replace(placed, solution=solution)
    if every[0][0] in same:
        placed = priors.located(solution, readings, fit)
    stays = {
        i
        for i in same
        for part in earlier
        if part.reference == contents[frames[component[i]]]
        and _equal(part.poses.get(contents[i]), solution.poses[i])
    }
    return Standing(placed, standing.members | stays, frames)


def _equal(one: Sim3 | None, other: Sim3) -> bool:
    return one is not None and _numbers(one) == _numbers(other)


def _numbers(pose: Sim3) -> list[Any]:
    return [pose.scale, pose.rotation.tolist(), pose.translation.tolist()]


def _key(
    group: Group, edges: Sequence[Edge], sure: Collection[int], contents: Sequence[str]
) -> str:
    """Of all that has a say in where the members lie: their readings are in their contents. Members
    of the same contents make it no part that is known again."""
    own = [contents[i] for i in group]
    held = [
        [
            *(contents[edge.source], contents[edge.target], edge.method, k in sure),
            *(edge.inliers, edge.far_error, edge.residual),
            edge.sim3 and _numbers(edge.sim3),
        ]
        for k, edge in enumerate(edges)
        if edge.source in group
    ]
    twice = list(group) if len(set(own)) < len(own) else []
    digest = hashlib.sha256(json.dumps([own, held, twice]).encode())
    for name, source in code_of(_ENTRY).items():
        digest.update(f"{name} {len(source)} ".encode() + source)
    return digest.hexdigest()


def _written(
    group: Group, standing: Standing, contents: Sequence[str], edges: Sequence[Edge]
) -> dict[str, Any]:
    solution = standing.placed.solution
    within = zip(solution.components, standing.frames, strict=True)
    return {
        "poses": {contents[i]: _numbers(solution.poses[i]) for i in group},
        "frames": [contents[frame] for own, frame in within if own[0] in group],
        "rejected": [
            [contents[edges[k].source], contents[edges[k].target]]
            for k in solution.rejected
            if edges[k].source in group
        ],
    }


def _read(stored: Mapping[str, Any]) -> _Part:
    return _Part(
        {key: Sim3(*pose) for key, pose in stored["poses"].items()},
        frozenset(stored["frames"]),
        frozenset((source, target) for source, target in stored["rejected"]),
    )
