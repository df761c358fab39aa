"""A registration from places that an operator found in both members."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stitch.register import Edge
from stitch.sim3 import umeyama

Point = tuple[float, float, float]


def pin(
    source_number: int,
    target_number: int,
    points: Sequence[tuple[Point, Point]],
    target_depth: float,
) -> Edge:
    """Least-squares Sim3 from pairs of places, each (in the source's frame, in the target's).

    Raises ValueError when they do not fix one: fewer than 3, or on one line.
    """
    here = np.array([pair[0] for pair in points], np.float64).reshape(-1, 3)
    there = np.array([pair[1] for pair in points], np.float64).reshape(-1, 3)
    for places in (here, there):
        singular = np.linalg.svd(places - places.mean(axis=0), compute_uv=False)
        if len(places) < 3 or singular[1] < 1e-3 * singular[0]:
            raise ValueError(f"{len(places)} points, or on one line: they do not fix a transform")
    sim3 = umeyama(here, there)
    error = np.linalg.norm(sim3.apply(here) - there, axis=1)
    return Edge(
        source_number,
        target_number,
        matches=len(points),
        inliers=len(points),
        hull_share=0.0,
        residual=float(np.sqrt(np.mean(error**2))) / target_depth,
        sim3=sim3,
        method="pinned",
    )
