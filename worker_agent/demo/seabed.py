"""A synthetic seabed: one grid that holds the height and the lit colour of the ground.

Sand with ripples, stones, rubble and gravel, mottled at several sizes so that features are found
at every scale, lit once by a sun and by ambient occlusion. World axes: x east, y north, z up, in
metres; texel (i, j) lies at x = j * texel_m, y = i * texel_m.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

Floats = NDArray[np.float32]

_SAND = np.array([0.62, 0.56, 0.44], np.float32)
_CORAL = np.array(
    [
        [0.55, 0.30, 0.22],
        [0.60, 0.48, 0.22],
        [0.35, 0.42, 0.25],
        [0.62, 0.34, 0.42],
        [0.30, 0.24, 0.20],
        [0.70, 0.62, 0.50],
    ],
    np.float32,
)
_SUN = np.array([0.35, 0.25, 0.90]) / np.linalg.norm([0.35, 0.25, 0.90])


@dataclass(frozen=True, slots=True)
class Seabed:
    """`height` (rows, columns) metres and `colour` (rows, columns, 3) linear RGB, both f32."""

    height: Floats
    colour: Floats
    texel_m: float

    @property
    def size_m(self) -> tuple[float, float]:
        """Extent along x and y."""
        rows, columns = self.height.shape
        return (columns - 1) * self.texel_m, (rows - 1) * self.texel_m

    def height_at(self, x: float, y: float) -> float:
        """The ground's bilinear height under (x, y). IndexError outside of the grid."""
        u, v = x / self.texel_m, y / self.texel_m
        j, i = int(np.floor(u)), int(np.floor(v))
        rows, columns = self.height.shape
        if not (0 <= i < rows - 1 and 0 <= j < columns - 1):
            raise IndexError(f"({x:.2f}, {y:.2f}) m lies outside of the seabed {self.size_m} m")
        fx, fy = u - j, v - i
        cell = self.height[i : i + 2, j : j + 2].astype(np.float64)
        rows_mixed = cell[0] * (1 - fy) + cell[1] * fy
        return float(rows_mixed[0] * (1 - fx) + rows_mixed[1] * fx)


@dataclass(frozen=True, slots=True)
class _Stones:
    """One kind of half-buried ellipsoid, scattered evenly."""

    per_m2: float
    radius_m: tuple[float, float]
    height_over_radius: float
    palette: Floats
    jitter: float


_KINDS = (
    _Stones(0.25, (0.22, 0.45), 0.8, _CORAL, 0.25),
    _Stones(2.6, (0.05, 0.18), 0.9, _CORAL, 0.35),
    _Stones(46.0, (0.014, 0.045), 0.55, np.vstack([_CORAL, _SAND * 1.2, _SAND * 0.5]), 0.45),
    _Stones(260.0, (0.006, 0.013), 0.4, np.vstack([_CORAL * 1.2, _SAND * 1.35, _SAND * 0.35]), 0.5),
)


def make_seabed(seed: int, size_m: tuple[float, float], texel_m: float) -> Seabed:
    """The seabed of `seed`, at least `size_m` (x, y) large. Deterministic."""
    rng = np.random.default_rng(seed)
    columns, rows = (int(np.ceil(side / texel_m)) + 2 for side in size_m)
    shape = (rows, columns)
    cells = 1.0 / texel_m  # texels in a metre

    height = 0.10 * _octaves(rng, shape, 3.6 * cells, 3, 0.55)
    height += 0.006 * _octaves(rng, shape, 0.24 * cells, 4, 0.55)
    x = np.arange(columns, dtype=np.float32)[None] * texel_m
    y = np.arange(rows, dtype=np.float32)[:, None] * texel_m
    ripples = np.sin(2 * np.pi * (1.9 * x + 0.7 * y + 0.3 * np.sin(1.3 * y)))
    height += (0.012 * ripples).astype(np.float32)

    stains = _octaves(rng, shape, 0.48 * cells, 6, 0.75)
    stains /= stains.std()
    albedo = np.clip(_SAND * (1 + 0.16 * stains[..., None]), 0.03, 1).astype(np.float32)
    for kind in _KINDS:
        _scatter(rng, height, albedo, texel_m, kind)
    mottling = _octaves(rng, shape, 0.24 * cells, 5, 0.8)
    mottling /= mottling.std()
    albedo = np.clip(albedo * (1 + 0.2 * mottling[..., None]), 0.02, 1)
    height += 0.004 * _octaves(rng, shape, 0.04 * cells, 2, 0.55)
    return Seabed(height, _lit(height, albedo, texel_m), texel_m)


def _octaves(
    rng: np.random.Generator, shape: tuple[int, int], coarsest: float, count: int, gain: float
) -> Floats:
    """Value noise: `count` octaves, the first of `coarsest` texels, each `gain` times the last."""
    total = np.zeros(shape, np.float32)
    for octave in range(count):
        spacing = coarsest / 2**octave
        if spacing < 1.5:
            break
        knots = [int(np.ceil(side / spacing)) + 2 for side in shape]
        values = rng.standard_normal(knots).astype(np.float32)
        smooth = zoom(values, spacing, order=1, grid_mode=True, mode="nearest")
        total += gain**octave * smooth[: shape[0], : shape[1]]
    return total


def _scatter(
    rng: np.random.Generator, height: Floats, albedo: Floats, texel_m: float, kind: _Stones
) -> None:
    rows, columns = height.shape
    count = round(kind.per_m2 * rows * columns * texel_m**2)
    smallest, largest = np.log(kind.radius_m)
    radius_m = np.exp(rng.uniform(smallest, largest, count))
    colour = kind.palette[rng.integers(0, len(kind.palette), count)]
    colour = colour * rng.uniform(1 - kind.jitter, 1 + kind.jitter, (count, 1))
    colour = np.clip(colour + rng.normal(0, 0.04, (count, 3)), 0.02, 1)
    _stamp(
        height,
        albedo,
        rng.uniform(0, columns, count),
        rng.uniform(0, rows, count),
        radius_m / texel_m,
        kind.height_over_radius * radius_m * rng.uniform(0.6, 1.3, count),
        colour.astype(np.float32),
        rng.uniform(0.45, 1.0, count),
        rng.uniform(0.0, np.pi, count),
    )


@njit(cache=True)  # type: ignore[untyped-decorator]
def _stamp(
    height: Any,
    albedo: Any,
    xs: Any,
    ys: Any,
    radii: Any,
    heights: Any,
    colours: Any,
    flattening: Any,
    angles: Any,
) -> None:
    """Adds half ellipsoids to the height and blends their colour in. Lengths are in texels."""
    rows, columns = height.shape
    for k in range(xs.size):
        reach = int(radii[k]) + 2
        c, s = np.cos(angles[k]), np.sin(angles[k])
        for i in range(max(0, int(ys[k]) - reach), min(rows, int(ys[k]) + reach + 1)):
            for j in range(max(0, int(xs[k]) - reach), min(columns, int(xs[k]) + reach + 1)):
                dx, dy = j - xs[k], i - ys[k]
                u = (c * dx + s * dy) / radii[k]
                v = (c * dy - s * dx) / (radii[k] * flattening[k])
                inside = 1.0 - u * u - v * v
                if inside > 0.0:
                    height[i, j] += heights[k] * np.sqrt(inside)
                    cover = min(1.0, 4.0 * inside)
                    for channel in range(3):
                        albedo[i, j, channel] += cover * (
                            colours[k, channel] - albedo[i, j, channel]
                        )


def _lit(height: Floats, albedo: Floats, texel_m: float) -> Floats:
    """Lambert by one sun, plus ambient light dimmed in hollows."""
    slope_y, slope_x = np.gradient(height, texel_m)
    facing = _SUN[2] - slope_x * _SUN[0] - slope_y * _SUN[1]
    facing = np.clip(facing / np.sqrt(1 + slope_x**2 + slope_y**2), 0, 1)
    relief = height - gaussian_filter(height, 0.1 / texel_m)
    openness = np.clip(1 + 2.2 * relief, 0.35, 1.25)
    light = (0.30 + 0.85 * facing) * openness
    colour: Floats = np.clip(albedo * light[..., None], 0, 1.2).astype(np.float32)
    return colour
