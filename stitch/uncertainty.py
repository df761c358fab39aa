"""How far off a registration may be where no common points hold it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from stitch.sim3 import F64

_PATCH, _FLOOR = 0.25, 0.003  # of the depth
_AT_MOST = 200  # places looked at


def far_error(
    places: F64, residuals: F64, everywhere: npt.NDArray[np.floating[Any]], depth: float
) -> float:
    """Expected misplacement (one sigma) of the worst placed ground, by the least-squares
    covariance of a Sim3 fitted to points at `places` (M,3), M > 3, that leave `residuals` (M,3).

    `everywhere` (P,3): the ground, all in the target's frame; its outermost 5 % do not count.
    Reconstructions err alike in neighbouring points, more than their residuals show: a patch of
    ground, a quarter of the `depth` wide, counts once, and is off by 0.3 % of it more.
    """
    middle = places.mean(axis=0)
    freedom = max(3 * len(places) - 7, 1)
    variance = float((residuals**2).sum()) / freedom + (_FLOOR * depth) ** 2
    patches = len(np.unique(np.floor(places / (_PATCH * depth)), axis=0))
    variance *= len(places) / patches
    rows = motion(places - middle)
    covariance = variance * np.linalg.pinv(np.einsum("nai,naj->ij", rows, rows))
    some = everywhere[:: max(1, len(everywhere) // _AT_MOST)].astype(np.float64)
    there = motion(some - middle)
    spread = np.einsum("nai,ij,naj->n", there, covariance, there)
    return float(np.sqrt(max(0.0, np.percentile(spread, 95))))


def motion(at: F64) -> F64:
    """(N,3,7): how points move with scale, rotation and translation."""
    moves = np.zeros((len(at), 3, 7))
    moves[:, :, 0] = at
    x, y, z = at.T
    moves[:, 1, 1], moves[:, 2, 1] = -z, y
    moves[:, 0, 2], moves[:, 2, 2] = z, -x
    moves[:, 0, 3], moves[:, 1, 3] = -y, x
    moves[:, :, 4:] = np.eye(3)
    return moves
