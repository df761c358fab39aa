"""Where a stitched scene belongs, from the gravity and the positions of its members' cameras."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stitch.priors import Readings, World, readings
from stitch.sidecar import Sidecar
from stitch.sim3 import Sim3
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
    return World(sim3, metric=found.metric)
