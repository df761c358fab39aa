"""From what a depth model says to depths in the units of the SfM model, by its sparse points. Pure.

Such a model knows inverse depth up to a scale and a shift (Ranftl et al. 2020), or depth up to
both. Each frame has its own, found as in that paper from points whose depth is known, here with a
least median of squares before the least squares, because some points of SfM are wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["Alignment", "Output", "align", "depths_of"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Output = Literal["disparity", "depth"]

MIN_POINTS = 20
MIN_SHARE = 0.5  # of the points that must agree
MAX_ERROR = 0.2  # median relative error of the depths of those
_DRAWS = 300
_OUTLIER = 2.5  # robust standard deviations


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """depth = scale * said + shift, or its inverse where the model says disparities."""

    scale: float
    shift: float
    points: int  # that agree
    error: float  # median of |depth / known - 1| over these


def align(said: F64, known: F64, output: Output) -> Alignment | None:
    """`said` by the model at points of `known` depth, (N,) each; None when they do not agree."""
    usable = np.isfinite(said) & np.isfinite(known) & (known > 0)
    x, z = said[usable], known[usable]
    if len(x) < MIN_POINTS or np.ptp(x) == 0:
        return None
    y = 1.0 / z if output == "disparity" else z
    pairs = np.random.default_rng(0).integers(0, len(x), (_DRAWS, 2))
    dx = x[pairs[:, 1]] - x[pairs[:, 0]]
    pairs, dx = pairs[dx != 0], dx[dx != 0]
    slopes = (y[pairs[:, 1]] - y[pairs[:, 0]]) / dx
    offsets = y[pairs[:, 0]] - slopes * x[pairs[:, 0]]
    apart = np.abs(slopes[:, None] * x + offsets[:, None] - y)
    medians = np.median(apart, axis=1)
    best = int(medians.argmin())
    limit = _OUTLIER * 1.4826 * medians[best]
    agree = apart[best] <= max(float(limit), 1e-12 * float(np.abs(y).max()))
    scale, shift = (float(value) for value in np.polyfit(x[agree], y[agree], 1))
    fit = scale * x[agree] + shift
    if scale <= 0 or agree.sum() < max(MIN_POINTS, MIN_SHARE * len(x)) or (fit <= 0).any():
        return None
    depths = 1.0 / fit if output == "disparity" else fit
    error = float(np.median(np.abs(depths / z[agree] - 1.0)))
    if error > MAX_ERROR:
        return None
    return Alignment(scale=scale, shift=shift, points=int(agree.sum()), error=error)


def depths_of(said: F32, found: Alignment, output: Output) -> F32:
    """(H, W) depths, 0 where they would be behind the camera or at infinity."""
    fit = found.scale * said.astype(np.float64) + found.shift
    depths = np.zeros(said.shape, np.float32)
    ahead = fit > 0
    depths[ahead] = 1.0 / fit[ahead] if output == "disparity" else fit[ahead]
    return depths
