"""Where a patch of one picture lies in another, to a few hundredths of a pixel.

Inverse compositional alignment (Baker and Matthews, IJCV 56(3), 2004) over an affine warp, the
perspective part of the plane held, brightness and contrast left out by normalising both patches.
Compiled without fast mathematics and without threads: the same numbers in every process.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from worker_agent.training.compiled import compiled

__all__ = ["RADIUS", "align"]

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

RADIUS = 13  # of a patch; of 7, 10 and 13 the largest left the smallest residuals, by a third
_SPREAD = 0.6  # of the radius: the weight of a pixel falls off like a Gaussian
_ROUNDS = 15
_STILL = 1e-6  # squared pixels: a step below this is the last
_FURTHEST = 4.0  # pixels from the guess
_LEAST_CONTRAST = 1.0  # grey values


@compiled(cache=True)
def _at(picture: U8, x: float, y: float) -> float:
    """Cubic convolution (Keys 1981) at column x, row y."""
    column, row = math.floor(x), math.floor(y)
    u, v = x - column, y - row
    a = -0.5
    u0 = ((a * u - 2 * a) * u + a) * u
    u1 = ((a + 2) * u - (a + 3)) * u * u + 1
    u2 = ((-(a + 2) * u + (2 * a + 3)) * u - a) * u
    u3 = (-a * u + a) * u * u
    v0 = ((a * v - 2 * a) * v + a) * v
    v1 = ((a + 2) * v - (a + 3)) * v * v + 1
    v2 = ((-(a + 2) * v + (2 * a + 3)) * v - a) * v
    v3 = (-a * v + a) * v * v
    total = 0.0
    for line, weight in ((row - 1, v0), (row, v1), (row + 1, v2), (row + 2, v3)):
        total += weight * (
            u0 * picture[line, column - 1]
            + u1 * picture[line, column]
            + u2 * picture[line, column + 1]
            + u3 * picture[line, column + 2]
        )
    return total


@compiled(cache=True)
def align(
    reference: U8, other: U8, points: F64, guesses: F64, warps: F64, tilts: F64
) -> tuple[F64, F64]:
    """For each of N points of `reference`: (where it lies in `other` (N, 2), how alike the patches
    are (N,), 1 at most, -1 where nothing was found).

    Pictures are grey (height, width); positions (N, 2) are column and row, whole at the middle of
    a pixel. `warps` (N, 2, 2) and `tilts` (N, 2) guess how offsets u from a point go over:
    (warp @ u) / (1 + tilt . u).
    """
    count = len(points)
    found = guesses.copy()
    alike = np.full(count, -1.0)
    side = 2 * RADIUS + 1
    size = side * side
    across, down, weights = np.empty(size), np.empty(size), np.empty(size)
    for k in range(size):
        across[k], down[k] = k % side - RADIUS, k // side - RADIUS
        squared = across[k] ** 2 + down[k] ** 2
        weights[k] = math.exp(-squared / (2 * (_SPREAD * RADIUS) ** 2))
    weights /= weights.sum()
    steepest, patch, there = np.empty((size, 6)), np.empty(size), np.empty(size)
    high, wide = reference.shape
    other_high, other_wide = other.shape
    margin = RADIUS + 3
    for n in range(count):
        x0, y0 = points[n]
        if not (margin < x0 < wide - margin and margin < y0 < high - margin):
            continue
        for k in range(size):
            x, y = x0 + across[k], y0 + down[k]
            patch[k] = _at(reference, x, y)
            gx = _at(reference, x + 0.5, y) - _at(reference, x - 0.5, y)
            gy = _at(reference, x, y + 0.5) - _at(reference, x, y - 0.5)
            steepest[k, 0], steepest[k, 1] = gx, gy
            steepest[k, 2], steepest[k, 3] = gx * across[k], gx * down[k]
            steepest[k, 4], steepest[k, 5] = gy * across[k], gy * down[k]
        patch -= (weights * patch).sum()
        contrast = math.sqrt((weights * patch * patch).sum())
        if contrast < _LEAST_CONTRAST:
            continue
        patch /= contrast
        for j in range(6):  # what brightness and contrast could explain is no motion
            column = steepest[:, j] / contrast
            column -= (weights * column).sum()
            column -= (weights * column * patch).sum() * patch
            steepest[:, j] = column
        normal = np.zeros((6, 6))
        for k in range(size):
            for i in range(6):
                for j in range(i, 6):
                    normal[i, j] += weights[k] * steepest[k, i] * steepest[k, j]
        for i in range(6):
            normal[i, i] = normal[i, i] * (1 + 1e-6) + 1e-9
            for j in range(i):
                normal[i, j] = normal[j, i]
        inverse = np.linalg.inv(normal)
        x, y = guesses[n]
        a, b, c, d = warps[n, 0, 0], warps[n, 0, 1], warps[n, 1, 0], warps[n, 1, 1]
        likeness = -1.0
        for _ in range(_ROUNDS):
            reach_x = 1.1 * RADIUS * (abs(a) + abs(b)) + 3
            reach_y = 1.1 * RADIUS * (abs(c) + abs(d)) + 3
            likeness = -1.0
            if not (
                reach_x < x < other_wide - reach_x
                and reach_y < y < other_high - reach_y
                and abs(x - guesses[n, 0]) <= _FURTHEST
                and abs(y - guesses[n, 1]) <= _FURTHEST
            ):
                break
            inside = True
            for k in range(size):
                far = 1.0 + tilts[n, 0] * across[k] + tilts[n, 1] * down[k]
                column_k = x + (a * across[k] + b * down[k]) / far
                row_k = y + (c * across[k] + d * down[k]) / far
                if not (
                    far > 0.5 and 1 <= column_k < other_wide - 2 and 1 <= row_k < other_high - 2
                ):
                    inside = False
                    break
                there[k] = _at(other, column_k, row_k)
            if not inside:
                break
            there -= (weights * there).sum()
            contrast = math.sqrt((weights * there * there).sum())
            if contrast < _LEAST_CONTRAST / 2:
                break
            there /= contrast
            likeness = (weights * there * patch).sum()
            step = np.zeros(6)
            for k in range(size):
                for j in range(6):
                    step[j] += weights[k] * steepest[k, j] * (there[k] - patch[k])
            step = inverse @ step
            determinant = (1 + step[2]) * (1 + step[5]) - step[3] * step[4]
            if abs(determinant) < 0.3:
                likeness = -1.0
                break
            i00, i01 = (1 + step[5]) / determinant, -step[3] / determinant
            i10, i11 = -step[4] / determinant, (1 + step[2]) / determinant
            a, b, c, d = a * i00 + b * i10, a * i01 + b * i11, c * i00 + d * i10, c * i01 + d * i11
            dx, dy = a * step[0] + b * step[1], c * step[0] + d * step[1]
            x, y = x - dx, y - dy
            if dx * dx + dy * dy < _STILL:
                break
        if likeness > 0:
            found[n, 0], found[n, 1] = x, y
            alike[n] = likeness
    return found, alike
