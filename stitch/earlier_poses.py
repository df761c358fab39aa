"""What did not move stays: a new version of a stitch takes over poses of the version before, to the
last bit, wherever what came since says nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stitch.certainty import Certainty, certainties, sigmas_of
from stitch.motions import System, add_edge, small
from stitch.posegraph import normalised
from stitch.priors import Placed
from stitch.register import Edge
from stitch.sim3 import F64, Sim3

_STRAINED = 1.0  # sigmas of a pair: by so much more it may disagree with the poses that stay
_STEPS = 8


@dataclass(frozen=True, slots=True)
class Earlier:
    """A part of the version before: poses of its members by their contents, in the frame of the
    member `reference`."""

    reference: str
    poses: Mapping[str, Sim3]


@dataclass(frozen=True, slots=True)
class Standing:
    placed: Placed
    members: frozenset[int]  # whose poses are those of the version before
    frames: tuple[int, ...]  # by component: the member whose frame it is in


def stand(
    placed: Placed,
    contents: Sequence[str],
    extents: Sequence[tuple[F64, float]],
    edges: Sequence[Edge],
    earlier: Sequence[Earlier],
) -> Standing:
    """`placed` with the poses of `earlier` where they still hold. `edges`: those that hold it
    together; `contents` and `extents` by member.

    A part stays in the frame it was in. A member stays where it was when the new solution puts it
    there within one sigma, and when no pair of it is strained by that. The others are then fitted
    to those that stay.
    """
    solution = placed.solution
    units = [Sim3(size, np.eye(3), centre) for centre, size in extents]
    sure = certainties(solution, extents, edges)
    poses, stays, frames = list(solution.poses), set[int](), []
    world = placed.world
    for group in solution.components:
        frame, before = _before(group, contents, earlier)
        frames.append(frame)
        if not before:
            continue
        back = poses[frame].inverse()
        if world is not None and group is solution.components[0]:
            world = replace(world, sim3=world.sim3 @ poses[frame])
        moved = {i: back @ poses[i] for i in group} | {frame: Sim3.identity()}
        ties = {
            i: _tie(sure, i, frame, moved[i].scale * units[i].scale) for i in group if i != frame
        }
        still = {
            i
            for i, pose in before.items()
            if i == frame or _moves(moved[i] @ units[i], pose @ units[i], ties[i]) <= 1.0
        }
        inside = [edge for edge in edges if edge.source in group]
        fitted, still = _fitted(moved, {i: before[i] for i in still}, frame, inside, ties, units)
        for i, pose in fitted.items():
            poses[i] = pose
        stays |= still
    return Standing(
        replace(placed, solution=replace(solution, poses=tuple(poses)), world=world),
        frozenset(stays),
        tuple(frames),
    )


def _before(
    group: Sequence[int], contents: Sequence[str], earlier: Sequence[Earlier]
) -> tuple[int, dict[int, Sim3]]:
    """The member whose frame the group is in, and earlier poses in that frame: those of the part
    that most of them were in, if the member whose frame that was is among them."""
    frame, found = group[0], dict[int, Sim3]()
    for part in earlier:
        poses = {i: part.poses[contents[i]] for i in group if contents[i] in part.poses}
        there = [i for i in poses if contents[i] == part.reference]
        if there and len(poses) > max(len(found), 1):
            frame, found = there[0], poses
    return frame, found


def _tie(sure: Mapping[int, Certainty], member: int, frame: int, size: float) -> F64:
    """(7,) one sigma of a member's place in the frame, in its unit frame. Of the first member of a
    part nothing is uncertain: then it is the frame's own uncertainty."""
    known = [sure[i] for i in (member, frame) if i in sure]
    turn = np.radians(np.hypot.reduce([one.rotation_deg for one in known]))
    shift = np.hypot.reduce([one.position for one in known]) / size
    growth = np.hypot.reduce([one.scale for one in known])
    return np.array([*[turn / np.sqrt(3)] * 3, *[shift / np.sqrt(3)] * 3, growth])


def _fitted(
    free: dict[int, Sim3],
    still: dict[int, Sim3],
    frame: int,
    edges: Sequence[Edge],
    ties: Mapping[int, F64],
    units: Sequence[Sim3],
) -> tuple[dict[int, Sim3], set[int]]:
    """All poses, with those of `still` held as far as no edge minds; and who stayed. `free` is
    the solution without holding any but `frame`; the others stay as near to it as `ties` say."""
    least = [_strain(edge, free, units) for edge in edges]
    while True:
        poses = _others_fitted(free, still, edges, ties, units)
        strained = [
            edge
            for edge, own in zip(edges, least, strict=True)
            if _strain(edge, poses, units) > own + _STRAINED
        ]
        leave = {i for edge in strained for i in (edge.source, edge.target)} & set(still) - {frame}
        if not leave:
            return poses, set(still)
        still = {i: pose for i, pose in still.items() if i not in leave}


def _strain(edge: Edge, poses: Mapping[int, Sim3], units: Sequence[Sim3]) -> float:
    """What the poses differ from the edge, in sigmas."""
    source, target = (poses[i] @ units[i] for i in (edge.source, edge.target))
    return _moves(target @ normalised(edge, units), source, sigmas_of(edge))


def _moves(one: Sim3, other: Sim3, sigmas: F64) -> float:
    """From one pose to the other, in sigmas: root mean square of the seven numbers."""
    system = System(7)
    add_edge(system, Sim3.identity(), (-1, other), (-1, one), sigmas)
    return float(np.sqrt(system.squares() / 7))


def _others_fitted(
    free: dict[int, Sim3],
    still: dict[int, Sim3],
    edges: Sequence[Edge],
    ties: Mapping[int, F64],
    units: Sequence[Sim3],
) -> dict[int, Sim3]:
    row = {number: k for k, number in enumerate(sorted(set(free) - set(still)))}
    pose = {i: still.get(i, free[i]) @ units[i] for i in free}
    for _ in range(_STEPS if row else 0):
        system = System(7 * len(row))
        for i, k in row.items():
            home = (-1, free[i] @ units[i])
            add_edge(system, Sim3.identity(), (k, pose[i]), home, ties[i])
        for edge in edges:
            if edge.source in row or edge.target in row:
                source, target = ((row.get(i, -1), pose[i]) for i in (edge.source, edge.target))
                add_edge(system, normalised(edge, units), source, target, sigmas_of(edge))
        step = system.solved().reshape(-1, 7)
        for i, k in row.items():
            pose[i] = pose[i] @ small(step[k])
        if np.abs(step).max() < 1e-9:
            break
    return {i: still[i] if i in still else pose[i] @ units[i].inverse() for i in free}
