"""Gaussians that hang alone in the water, where no view contradicts them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

NEIGHBOURS = 8
ALONE = 15.0  # times the median distance to the NEIGHBOURS-th neighbour, and
OWN = 5.0  # times its own size: a large gaussian that stands for open water is no floater
MOST = 0.02  # of all gaussians: more are no floaters but the scene's own sparse parts

F32 = npt.NDArray[np.float32]


def floaters(means: F32, sizes: F32) -> npt.NDArray[np.bool_]:
    """(N,) True for the loneliest gaussians of means (N, 3) with their largest standard
    deviations `sizes` (N,): at most MOST of them."""
    if len(means) <= NEIGHBOURS:
        return np.zeros(len(means), bool)
    finite = np.isfinite(means).all(axis=1)
    distance = np.full(len(means), np.inf)
    found = cKDTree(means[finite]).query(means[finite], NEIGHBOURS + 1)[0]
    distance[finite] = found[:, -1]
    alone: npt.NDArray[np.bool_] = distance > np.maximum(
        ALONE * float(np.median(distance[finite])), OWN * sizes
    )
    most = int(MOST * len(means))
    if alone.sum() > most:
        loneliest = np.argsort(-distance, kind="stable")[:most]
        alone = np.zeros(len(means), bool)
        alone[loneliest] = True
    return alone
