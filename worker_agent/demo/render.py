"""Renders the seabed through water with a pinhole camera, by marching rays over the heightfield.

Camera axes: x right, y down, z forward; the centre of the first pixel is at (0.5, 0.5). The water
follows the usual image formation model, per channel c and along a ray of length d:
I_c = J_c exp(-beta_c d) + B_c (1 - exp(-beta_c d)) (Akkaynak and Treibitz, CVPR 2018, simplified to
one coefficient for attenuation and backscatter).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from worker_agent.demo.seabed import Seabed

_GAMMA = 1 / 2.2
_NOISE = 0.012  # standard deviation, linear light
_VIGNETTE = 0.22  # share of light lost at one focal length from the optical axis


@dataclass(frozen=True, slots=True)
class Camera:
    """PINHOLE with square pixels; the principal point is the middle of the picture."""

    width: int
    height: int
    hfov_deg: float

    @property
    def focal_px(self) -> float:
        return self.width / 2 / float(np.tan(np.deg2rad(self.hfov_deg) / 2))


@dataclass(frozen=True, slots=True)
class Water:
    """Per channel (R, G, B): attenuation in 1/m, veiling light, and the camera's white balance."""

    attenuation: tuple[float, float, float]
    veil: tuple[float, float, float]
    gain: tuple[float, float, float]


def render_frame(
    seabed: Seabed,
    camera: Camera,
    water: Water,
    rotation: NDArray[np.float64],
    centre: NDArray[np.float64],
    frame_seed: int,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """One picture (height, width, 3) sRGB-like u8, and its depth along the optical axis in metres.

    `rotation` (3, 3) turns camera axes into world axes, `centre` (3,) is in metres. Depth is 0
    where the ray leaves the seabed. `frame_seed` draws the sensor noise.
    """
    picture = np.empty((camera.height, camera.width, 3), np.uint8)
    depth = np.empty((camera.height, camera.width), np.float32)
    _render(
        seabed.height,
        seabed.colour,
        seabed.texel_m,
        float(seabed.height.max()) + 1e-3,
        np.ascontiguousarray(rotation, np.float64),
        np.ascontiguousarray(centre, np.float64),
        camera.focal_px,
        np.array(water.attenuation),
        np.array(water.veil),
        np.array(water.gain),
        np.uint64(frame_seed),
        picture,
        depth,
    )
    return picture, depth


@njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _bilinear(grid: Any, i: Any, j: Any, fx: Any, fy: Any) -> Any:
    top = grid[i, j] * (1 - fx) + grid[i, j + 1] * fx
    bottom = grid[i + 1, j] * (1 - fx) + grid[i + 1, j + 1] * fx
    return top * (1 - fy) + bottom * fy


@njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _noise(seed: Any, index: Any) -> Any:
    """Roughly normal, zero mean, unit deviation: four bytes of a splitmix64 hash, added up."""
    z = (seed << np.uint64(32)) + np.uint64(index) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    total = 0.0
    for _ in range(4):
        total += float(z & np.uint64(255))
        z = z >> np.uint64(8)
    return (total - 510.0) / 147.8


@njit(cache=True, inline="always")  # type: ignore[untyped-decorator]
def _march(height: Any, texel: Any, top: Any, centre: Any, dx: Any, dy: Any, dz: Any) -> Any:
    """Where centre + t (dx, dy, dz) meets the ground: t, or -1 when it leaves the grid."""
    rows, columns = height.shape
    if dz > -1e-3:
        return -1.0
    t = max(0.0, (top - centre[2]) / dz)
    before = t
    shortest = 0.02 / np.sqrt(dx * dx + dy * dy + dz * dz)
    for _ in range(600):
        x, y, z = (centre[0] + t * dx) / texel, (centre[1] + t * dy) / texel, centre[2] + t * dz
        j, i = int(np.floor(x)), int(np.floor(y))
        if i < 0 or j < 0 or i >= rows - 1 or j >= columns - 1:
            return -1.0
        clearance = z - height[i, j]
        if clearance <= 0.0:
            above, below = before, t
            for _ in range(8):
                t = 0.5 * (above + below)
                x, y = (centre[0] + t * dx) / texel, (centre[1] + t * dy) / texel
                j, i = int(x), int(y)
                if centre[2] + t * dz <= _bilinear(height, i, j, x - j, y - i):
                    below = t
                else:
                    above = t
            return 0.5 * (above + below)
        before = t
        # A fraction of the drop that is left: long steps in open water, short ones near the ground.
        t += max(shortest, 0.45 * clearance / -dz)
    return -1.0


@njit(cache=True, parallel=True, fastmath=True)  # type: ignore[untyped-decorator]
def _render(
    height: Any,
    colour: Any,
    texel: Any,
    top: Any,
    rotation: Any,
    centre: Any,
    focal: Any,
    attenuation: Any,
    veil: Any,
    gain: Any,
    seed: Any,
    picture: Any,
    depth: Any,
) -> None:
    rows, columns = depth.shape
    for row in prange(rows):
        for column in range(columns):
            cx = (column + 0.5 - 0.5 * columns) / focal
            cy = (row + 0.5 - 0.5 * rows) / focal
            dx = rotation[0, 0] * cx + rotation[0, 1] * cy + rotation[0, 2]
            dy = rotation[1, 0] * cx + rotation[1, 1] * cy + rotation[1, 2]
            dz = rotation[2, 0] * cx + rotation[2, 1] * cy + rotation[2, 2]
            hit = _march(height, texel, top, centre, dx, dy, dz)
            distance = 1e3 if hit < 0 else hit * np.sqrt(cx * cx + cy * cy + 1.0)
            vignette = 1.0 - _VIGNETTE * min(1.0, cx * cx + cy * cy)
            depth[row, column] = max(0.0, hit)
            x = (centre[0] + max(0.0, hit) * dx) / texel
            y = (centre[1] + max(0.0, hit) * dy) / texel
            j, i = int(x), int(y)
            for channel in range(3):
                through = np.exp(-attenuation[channel] * distance)
                ground = 0.0
                if hit >= 0:
                    ground = _bilinear(colour[:, :, channel], i, j, x - j, y - i)
                light = (ground * through + veil[channel] * (1.0 - through)) * gain[channel]
                light = light * vignette + _NOISE * _noise(
                    seed, (row * columns + column) * 3 + channel
                )
                picture[row, column, channel] = np.uint8(
                    255.0 * min(1.0, max(0.0, light)) ** _GAMMA + 0.5
                )
