"""What gravity and positions say of a scene that images have put together already.

Pairs count as uncertain as their far ends are, readings as far as they are really off. Of a
member's positions, what they are off together is one observation, weighed by how far off that is
and at least by what is usual there; where each lies about their mean says how the member is turned
and how large it is, weighed by how they scatter and by how many of them err independently. So the
positions of one member 12 m off bend no map (of six members, 33 m long, by 2 mm at most, less
than what its images leave open); along a chain of many, where small errors of the images add up, it
is the positions that unbend it; and a member that its images make too large becomes less so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from stitch.certainty import sigmas_of
from stitch.motions import System, add_edge, cross, small
from stitch.posegraph import Solution, normalised
from stitch.register import Edge
from stitch.sidecar import Sidecar
from stitch.sim3 import F64, Sim3
from stitch.uncertainty import motion

MIN_READINGS = 3  # of a member, else they say nothing
_ROUNDS = 3
_STEPS = 4
_GRAVITY_FLOOR = np.radians(0.5)
_POSITION_FLOOR_M = 0.05
_MOST_POSITIONS = 100  # of a member, evenly: more would only repeat each other
_DOWN = np.array([0.0, 0.0, -1.0])


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """Of one member, in its own frame. `centres` (K,3) of its cameras; `positions` (K,3) metres
    east, north, up, NaN where unknown; `down` (3,) unit mean of its gravity readings, or None."""

    centres: F64
    positions: F64
    down: F64 | None
    spread: float = 0.0  # radians, of the gravity readings about their mean


@dataclass(frozen=True, slots=True)
class World:
    """`sim3` takes the scene's frame to metres east, north, up, when `metric`; else it only turns
    it upright. `uncertainty`: one sigma of its scale, as a share."""

    sim3: Sim3
    metric: bool
    uncertainty: float | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    """A solution that priors have moved, and what they are worth there."""

    solution: Solution
    world: World | None  # of the largest component
    position_residual_m: float | None  # median over members of what their positions are off
    gravity_residual_deg: float | None


Fit = Callable[[Sequence[Readings]], World | None]
"""Where a scene belongs, of readings in one common frame."""


def readings(sidecar: Sidecar, positions: F64) -> Readings:
    """`positions` (K,3): those of `sidecar.gps` in metres of the scene's neighbourhood."""
    turned = Rotation.from_quat(np.roll(sidecar.rotations, -1, axis=1)).inv()
    known = np.isfinite(sidecar.gravity).all(axis=1)
    down, spread = None, 0.0
    if known.sum() >= MIN_READINGS:
        each = turned[known].apply(sidecar.gravity[known])
        mean = each.sum(axis=0)
        length = float(np.linalg.norm(mean))
        if length > 0.5 * len(each):
            down = mean / length
            spread = float(np.median(np.arccos(np.clip(each @ down, -1.0, 1.0))))
    return Readings(sidecar.centres(), positions, down, spread)


def tilt(edge: Edge, source: Readings, target: Readings) -> float | None:
    """Radians between both members' directions of gravity under the edge; None without them."""
    if edge.sim3 is None or source.down is None or target.down is None:
        return None
    cosine = float((edge.sim3.rotation @ source.down) @ target.down)
    return float(np.arccos(np.clip(cosine, -1.0, 1.0)))


def place(
    solution: Solution,
    extents: Sequence[tuple[F64, float]],
    edges: Sequence[Edge],
    members: Sequence[Readings],
    fit: Fit,
) -> Placed:
    """`solution` of `edges` (see `posegraph.solve`) with what gravity and positions say; each
    component keeps the frame of its first member. `fit` says where a component belongs."""
    units = [Sim3(size, np.eye(3), centre) for centre, size in extents]
    kept = [edge for k, edge in enumerate(edges) if k not in set(solution.rejected)]
    poses = list(solution.poses)
    found: list[tuple[World | None, float | None, float | None]] = []
    for group in solution.components:
        if found and len(group) == 1:
            continue  # in a frame of its own
        inside = [edge for edge in kept if edge.source in group]
        done = _component(group, inside, units, poses, members, fit)
        for number, pose in done[0].items():
            poses[number] = pose
        found.append(done[1:])
    return Placed(replace(solution, poses=tuple(poses)), *found[0])


def located(solution: Solution, members: Sequence[Readings], fit: Fit) -> Placed:
    """Where the largest component of `solution` is, which is not moved."""
    group = solution.components[0]
    at = {number: solution.poses[number] for number in group}
    world = fit([_moved(members[i], at[i]) for i in group])
    return Placed(solution, world, *_residuals(world, at, members))


def _component(
    group: tuple[int, ...],
    edges: Sequence[Edge],
    units: Sequence[Sim3],
    poses: Sequence[Sim3],
    members: Sequence[Readings],
    fit: Fit,
) -> tuple[dict[int, Sim3], World | None, float | None, float | None]:
    moved = {number: poses[number] for number in group}
    world = fit([_moved(members[i], moved[i]) for i in group])
    if world is None:
        return moved, None, None, None
    tied = [(edge, sigmas_of(edge)) for edge in edges]
    for _ in range(_ROUNDS):
        located = {i: world.sim3 @ moved[i] for i in group}
        off = _measured(group, located, members, world.metric)
        if len(group) == 1:
            break
        solved = _refined(group, tied, units, located, members, off)
        back = solved[group[0]].inverse()
        moved = {i: back @ solved[i] for i in group[1:]} | {group[0]: Sim3.identity()}
        world = replace(world, sim3=solved[group[0]])
    # The last word on where the scene is has what the images and all readings agree on.
    world = fit([_moved(members[i], moved[i]) for i in group]) or world
    return moved, world, *_residuals(world, moved, members)


def _residuals(
    world: World | None, poses: dict[int, Sim3], members: Sequence[Readings]
) -> tuple[float | None, float | None]:
    """Medians over members: metres, degrees."""
    if world is None:
        return None, None
    placed = {i: world.sim3 @ pose for i, pose in poses.items()}
    off = _measured(list(poses), placed, members, world.metric)
    radians = _median(off.radians)
    return (
        _median({i: positions.metres for i, positions in off.positions.items()}),
        None if radians is None else float(np.degrees(radians)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _PositionsOff:
    """What a member's positions differ from where its cameras are."""

    metres: float  # root mean square
    together: float  # of that, their mean
    scatter: F64  # (3,) of each by itself, one sigma: level twice, height
    shape: float  # one sigma of what they say of turn and size, in scatters of one that is alone


@dataclass(frozen=True, slots=True)
class _Off:
    """By member: what its readings differ from where it is."""

    positions: dict[int, _PositionsOff]
    radians: dict[int, float]


def _measured(
    group: Sequence[int], located: dict[int, Sim3], members: Sequence[Readings], metric: bool
) -> _Off:
    positions, radians = {}, {}
    for i in group:
        own, pose = members[i], located[i]
        known = _known(own)
        if metric and len(known) >= MIN_READINGS:
            positions[i] = _apart(pose.apply(own.centres[known]), own.positions[known])
        if own.down is not None:
            cosine = float((pose.rotation @ own.down) @ _DOWN)
            radians[i] = max(float(np.arccos(np.clip(cosine, -1.0, 1.0))), own.spread)
    return _Off(positions, radians)


def _known(own: Readings) -> npt.NDArray[np.intp]:
    """Rows of the positions that count, in the order of time."""
    known = np.flatnonzero(np.isfinite(own.positions).all(axis=1))
    count = min(len(known), _MOST_POSITIONS)
    return known[np.linspace(0, len(known) - 1, count).astype(np.intp)]


def _apart(found: F64, told: F64) -> _PositionsOff:
    """Of camera centres and positions (N,3). A turn and a growth that all positions have in common
    are one observation, as their mean is; what is left then is each one's own."""
    away, count = found - told, len(found)
    mean = away.mean(axis=0)
    moves = motion(told - told.mean(axis=0)).reshape(-1, 7)
    about = (away - mean).ravel()
    common = (moves @ np.linalg.lstsq(moves, about, rcond=None)[0]).reshape(-1, 3)
    own = (away - mean) - common
    squares = (own**2).sum(axis=0) / max(count - 7 / 3, 1.0)
    level, up = np.sqrt(squares[:2].mean()), np.sqrt(squares[2])
    scatter = np.maximum([level, level, up], _POSITION_FLOOR_M)
    alone = 1.0 / independent(own / scatter)
    # Four numbers of turn and size, of noise alone, would be this large.
    real = float(((common / scatter) ** 2).mean()) - 4.0 / 3.0 * alone
    return _PositionsOff(
        metres=float(np.sqrt((away**2).sum(axis=1).mean())),
        together=float(np.linalg.norm(mean)),
        scatter=scatter,
        shape=float(np.sqrt(alone + max(real, 0.0))),
    )


def independent(errors: F64) -> float:
    """How many of the errors (N,k), in the order of time, count: N over what they repeat of each
    other, by their autocorrelation up to where it first ends."""
    power = float((errors**2).sum())
    repeated = 1.0
    for lag in range(1, len(errors)):
        alike = float((errors[:-lag] * errors[lag:]).sum())
        if alike <= 0.0:
            break
        repeated += 2.0 * alike / power
    return len(errors) / repeated


def _median(values: dict[int, float]) -> float | None:
    return float(np.median(list(values.values()))) if values else None


def _moved(own: Readings, pose: Sim3) -> Readings:
    down = None if own.down is None else pose.rotation @ own.down
    return Readings(pose.apply(own.centres), own.positions, down, own.spread)


def _refined(
    group: Sequence[int],
    tied: Sequence[tuple[Edge, F64]],
    units: Sequence[Sim3],
    located: dict[int, Sim3],
    members: Sequence[Readings],
    off: _Off,
) -> dict[int, Sim3]:
    """Gauss-Newton over the members' poses in the world, each moved in its own unit frame by a
    small turn, shift and growth of logarithm (7). `tied`: pairs and their sigmas."""
    at = {number: row for row, number in enumerate(group)}
    pose = {i: located[i] @ units[i] for i in group}
    measured = [(e.source, e.target, normalised(e, units), sigmas) for e, sigmas in tied]
    # What a fit of seven numbers to few means leaves over says too little of their errors.
    free = 3 * len(off.positions) - 7
    loose = np.sqrt(3 * len(off.positions) / free) if free > 0 else np.inf
    usual_m = _median({i: one.together for i, one in off.positions.items()}) or 0.0
    usual_rad = _median(off.radians) or 0.0
    for _ in range(_STEPS):
        system = System(7 * len(group))
        for source, target, relative, sigmas in measured:
            ends = (at[source], pose[source]), (at[target], pose[target])
            add_edge(system, relative, *ends, sigmas)
        for i, one in off.positions.items():
            # What a receiver is off for longer than a segment is no less than what it scatters.
            mean = loose * np.maximum(max(one.together, usual_m), one.scatter)
            system.add(*_positions(at[i], pose[i], units[i], members[i], one, mean))
        for i, radians in off.radians.items():
            down = members[i].down
            if down is not None:
                sigma = max(radians, usual_rad, _GRAVITY_FLOOR)
                turn = pose[i].rotation
                lean = np.zeros((3, 7))
                lean[:, :3] = -turn @ cross(down) / sigma
                system.add((turn @ down - _DOWN) / sigma, [(at[i], lean)])
        step = system.solved().reshape(-1, 7)
        for i in group:
            pose[i] = pose[i] @ small(step[at[i]])
        if np.abs(step).max() < 1e-7:
            break
    return {i: pose[i] @ units[i].inverse() for i in group}


def _positions(
    row: int, pose: Sim3, unit: Sim3, own: Readings, off: _PositionsOff, mean_sigma: F64
) -> tuple[F64, list[tuple[int, F64]]]:
    """Rows of a member's positions: their mean, and what each is off from it."""
    known = _known(own)
    inside = unit.inverse().apply(own.centres[known])
    away = pose.apply(inside) - own.positions[known]
    moves = pose.scale * pose.rotation @ motion(inside)[:, :, [1, 2, 3, 4, 5, 6, 0]]
    every = np.concatenate([moves, away[:, :, None]], axis=2)  # (N,3,7+1)
    mean = every.mean(axis=0)
    weight = 1.0 / (off.scatter * off.shape * np.sqrt(len(every)))
    about = ((every - mean) * weight[:, None]).reshape(-1, 8)
    # As few rows as there are unknowns say the same.
    rows = np.concatenate([mean / mean_sigma[:, None], np.linalg.qr(about, mode="r")])
    return rows[:, 7], [(row, rows[:, :7])]
