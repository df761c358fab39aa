"""Is one of two reconstructions bent? What their common points still differ by tells."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from stitch.sim3 import F64

_SIGMAS = 4.0
_MIN_POINTS = 30


def curvature(
    places: F64, residuals: F64, everywhere: npt.NDArray[np.floating[Any]], axes: F64
) -> float:
    """How far off the farthest ground is carried, at least, when the residuals (M,3) of common
    points at `places` (M,3) go on to curve as they do there.

    A Sim3 leaves noise; a bent reconstruction leaves a bowl. Residuals are fitted by a quadratic
    of the ground (its `axes` (2,3)), whose curved part is followed to all points `everywhere`
    (P,3) and lessened by four times its own uncertainty. Same unit as the residuals; 0 when too
    few points are common.
    """
    if len(places) < _MIN_POINTS:
        return 0.0
    middle = places.mean(axis=0)
    near, far = (places - middle) @ axes.T, (everywhere - middle) @ axes.T
    size = max(float(np.abs(near).max()), 1e-12)
    terms = _quadratic(near / size)
    inverse = np.linalg.pinv(terms.T @ terms)
    coefficients = inverse @ terms.T @ residuals
    left = residuals - terms @ coefficients
    variance = (left**2).sum() / max(3 * (len(places) - 6), 1)
    curved = _quadratic(far / size)[:, 3:]
    carried = np.linalg.norm(curved @ coefficients[3:], axis=1)
    spread = np.sqrt(3.0 * variance * np.einsum("ij,jk,ik->i", curved, inverse[3:, 3:], curved))
    return max(0.0, float(np.percentile(carried - _SIGMAS * spread, 95)))


def _quadratic(at: F64) -> F64:
    u, v = at.T
    return np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=1)
