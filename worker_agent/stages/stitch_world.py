"""Where a stitched scene belongs, from the gravity and the positions of its members' cameras."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stitch.merge import ground_axes
from stitch.priors import Placed, Readings, World, readings
from stitch.scale import LEAST, POSITIONS, Measure, Ruler, believed, of_members, of_ruler
from stitch.sidecar import Sidecar
from stitch.sim3 import Sim3
from stitch.territory import Member
from worker_agent.stages.sfm_georeference import Frame, georeference, to_enu

Origin = tuple[float, ...]  # latitude, longitude, altitude


def all_readings(sidecars: Sequence[Sidecar | None]) -> tuple[list[Readings], Origin | None]:
    """Of each member, and what the positions are metres from. A cloud alone has none."""
    fixes = [sidecar.gps if sidecar is not None else np.empty((0, 3)) for sidecar in sidecars]
    every = np.concatenate(fixes) if fixes else np.empty((0, 3))
    # A receiver may know no height; then all lie at that of the surface.
    every = np.where(np.isnan(every) & np.isfinite(every[:, :1]), 0.0, every)
    known = np.isfinite(every).all(axis=1)
    metres = np.full(every.shape, np.nan)
    origin = None
    if known.any():
        metres[known], origin = to_enu([(a, b, c) for a, b, c in every[known]])
    found, start = [], 0
    for sidecar, own in zip(sidecars, fixes, strict=True):
        rows = metres[start : start + len(own)]
        start += len(own)
        found.append(
            readings(sidecar, rows)
            if sidecar is not None
            else Readings(np.empty((0, 3)), np.empty((0, 3)), None)
        )
    return found, origin


def fit(members: Sequence[Readings]) -> World | None:
    """As `stitch.priors.Fit`."""
    frames = [
        Frame(
            centre=centre,
            down=member.down,
            position=position if np.isfinite(position).all() else None,
        )
        for member in members
        for centre, position in zip(member.centres, member.positions, strict=True)
    ]
    found = georeference(frames) if frames else None
    if found is None:
        return None
    sim3 = Sim3(found.scale, found.rotation, found.translation)
    return World(sim3, metric=found.metric, uncertainty=found.uncertainty)


def upright(members: Sequence[Member], world: World | None) -> Sim3:
    """The scene's frame to one with z up: metres east, north, up when it is known where it lies;
    else the ground level, and the cameras above it."""
    if world is not None:
        return world.sim3
    axes = ground_axes(members)
    centres = np.concatenate([m.pose.apply(m.sidecar.centres()) for m in members])
    points = np.concatenate([m.pose.apply(m.sidecar.points) for m in members])
    if np.median(centres @ axes[2]) < np.median(points @ axes[2]):
        axes = axes * np.array([[1.0], [-1.0], [-1.0]])
    return Sim3(1.0, axes * np.sign(np.linalg.det(axes)), np.zeros(3))


def measured(
    placed: Placed, members: Sequence[Member], numbers: Sequence[int], rulers: Sequence[Ruler]
) -> list[Measure]:
    """What each source says of the scene's unit. `members` have these `numbers`."""
    found = []
    world = placed.world
    if world is not None and world.metric:
        count = sum(int(np.isfinite(m.sidecar.gps[:, 0]).sum()) for m in members)
        sigma = max(world.uncertainty or 0.0, LEAST)
        found.append(Measure(POSITIONS, world.sim3.scale, sigma, count))
    found += of_members(members, [one.source for one in found])
    for ruler in rulers:
        if ruler.member in numbers:
            member = members[list(numbers).index(ruler.member)]
            found.append(of_ruler(ruler, member.pose, member.sidecar.median_depth))
    return found


def sized(
    world: World | None, measures: Sequence[Measure], members: Sequence[Member]
) -> World | None:
    """The world with the scale that is believed; what it says of the middle of the cameras stays.
    Where nothing says which way is up, the ground is level."""
    best = believed(measures)
    if best is None or best.source == POSITIONS:
        return world
    level = upright(members, world)
    middle = np.mean(np.concatenate([m.pose.apply(m.sidecar.centres()) for m in members]), axis=0)
    turned = level.rotation @ middle
    shift = level.apply(middle[None])[0] - best.metres * turned
    return World(Sim3(best.metres, level.rotation, shift), metric=True)
