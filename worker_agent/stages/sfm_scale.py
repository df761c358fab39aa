"""What a metre is in an upright model without positions: by an altimeter, else by the depth. Pure.

An altimeter tells how far the ground below the camera is, which the model's points tell in units of
their own. Depths tell how far the vehicle rose or sank, which the model's cameras tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Scale", "by_altitude", "by_depth", "heights"]

F64 = npt.NDArray[np.float64]

CONE = math.tan(math.radians(20.0))  # an acoustic beam and the vehicle's tilt
MIN_POINTS = 10  # of the model below a camera
MIN_FRAMES = 5
MAX_SPREAD = 0.2  # of single measurements against their median; beyond it they measure other ground
MAX_UNCERTAIN = 0.05  # of a scale that is taken
ROUNDS = 3
MAX_RESIDUALS = 3.0  # robust deviations


@dataclass(frozen=True, slots=True)
class Scale:
    metres: float  # a unit of the model
    uncertainty: float  # one standard deviation, over `metres`
    frames: int  # that counted


def heights(centres: F64, points: F64) -> F64:
    """(N,) median height of each camera (N, 3) above the points (P, 3) in the cone below it, z up;
    NaN where there are too few. Seconds for a thousand cameras and a million points."""
    found = np.full(len(centres), np.nan)
    for index, centre in enumerate(centres):
        off = points - centre
        below = -off[:, 2]
        under = (below > 0) & (off[:, 0] ** 2 + off[:, 1] ** 2 <= (CONE * below) ** 2)
        if under.sum() >= MIN_POINTS:
            found[index] = np.median(below[under])
    return found


def by_altitude(above: F64, altitudes: F64) -> Scale | None:
    """From heights in the model and measured ones (N,), NaN where unknown. None when they do not
    say: too few, or too far apart from each other."""
    known = np.isfinite(above) & np.isfinite(altitudes) & (above > 0) & (altitudes > 0)
    if known.sum() < MIN_FRAMES:
        return None
    ratios = np.log(altitudes[known] / above[known])
    middle = float(np.median(ratios))
    spread = 1.4826 * float(np.median(np.abs(ratios - middle)))
    if spread > MAX_SPREAD:
        return None
    # Neighbouring frames look at the same ground: a tenth of them count as independent.
    independent = max(1.0, known.sum() / 10)
    return Scale(math.exp(middle), spread / math.sqrt(independent), int(known.sum()))


def by_depth(up: Sequence[float] | F64, depths: F64) -> Scale | None:
    """From how the cameras rise in the model (N,) and the depths (N,), NaN where unknown. None when
    the vehicle kept its depth too well to tell."""
    z = np.asarray(up, np.float64)
    kept = np.isfinite(depths) & np.isfinite(z)
    slope, sigma = 0.0, math.inf
    for _ in range(ROUNDS):
        if kept.sum() < MIN_FRAMES:
            return None
        a, b = z[kept] - z[kept].mean(), -(depths[kept] - depths[kept].mean())
        size = float(a @ a)
        if size <= 0:
            return None
        slope = float(a @ b) / size
        residuals = -(depths - depths[kept].mean()) - slope * (z - z[kept].mean())
        noise = 1.4826 * float(np.median(np.abs(residuals[kept])))
        sigma = noise / math.sqrt(size)
        kept = kept & (np.abs(residuals) <= max(MAX_RESIDUALS * noise, 1e-9))
    if slope <= 0 or not sigma <= MAX_UNCERTAIN * slope:
        return None
    return Scale(slope, sigma / slope, int(kept.sum()))
