"""Numba kernels of the CPU rasterizer: binning to tiles, compositing and its gradient.

All in float64: in float32 a few of the millions of pixels of a trained view fall on the other side
of the alpha threshold, and a single one makes a gradient wrong by 1e-3 (docs/decisions/0006). Tiles
are 8 x 8 pixels; the inner loops have no branches, so that LLVM turns them into SIMD. Every tile,
and in the last step every gaussian, is handled by one thread in a fixed order, which makes results
independent of the thread count.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from worker_agent.training.compiled import compiled

TILE = 8
_PIXELS = TILE * TILE

# Columns of a gaussian's row as the kernels read it.
U, V, XX, XY, YY, OPACITY, RED, GREEN, BLUE, LIMIT, HALF_U, HALF_V = range(12)
GAUSSIAN_COLUMNS = 12

# Columns of the gradient rows.
G_U, G_V, G_XX, G_XY, G_YY, G_OPACITY, G_RED, G_GREEN, G_BLUE, G_ABS_U, G_ABS_V = range(11)
GRADIENT_COLUMNS = 11

_ALPHA_MAX = 0.999
_TRANSMITTANCE_MIN = 1e-4

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


@compiled(inline="always", fastmath=True)
def _exp_minus(s: Any) -> Any:
    """exp(-s) for 0 <= s <= 6, to 5e-6 relative: a polynomial for exp(-s / 16), squared 4 times.

    Written out because LLVM vectorises it and does not vectorise a call of exp.
    """
    t = s * (-1.0 / 16.0)
    p = 1.0 / 720.0
    p = p * t + 1.0 / 120.0
    p = p * t + 1.0 / 24.0
    p = p * t + 1.0 / 6.0
    p = p * t + 0.5
    p = p * t + 1.0
    p = p * t + 1.0
    p = p * p
    p = p * p
    p = p * p
    return p * p


@compiled(inline="always")
def _reaches(g: Any, x0: Any, y0: Any) -> Any:
    """Whether any pixel centre of the tile at (x0, y0) may lie inside the gaussian's ellipse.

    The minimum of the quadratic form over the rectangle of pixel centres lies at the centre or on
    one of the two edges that face it.
    """
    left, right = x0 + 0.5 - g[U], x0 + (TILE - 0.5) - g[U]
    top, bottom = y0 + 0.5 - g[V], y0 + (TILE - 0.5) - g[V]
    near_x = max(left, min(0.0, right))
    near_y = max(top, min(0.0, bottom))
    if near_x == 0.0 and near_y == 0.0:
        return True
    limit = g[LIMIT] + 1e-9
    if near_x != 0.0:
        y = max(top, min(bottom, -g[XY] * near_x / g[YY]))
        if 0.5 * (g[XX] * near_x * near_x + g[YY] * y * y) + g[XY] * near_x * y <= limit:
            return True
    if near_y != 0.0:
        x = max(left, min(right, -g[XY] * near_y / g[XX]))
        if 0.5 * (g[XX] * x * x + g[YY] * near_y * near_y) + g[XY] * x * near_y <= limit:
            return True
    return False


@compiled(nogil=True, cache=True)
def bin_gaussians(gaussians: F64, columns: int, rows: int) -> tuple[I64, I32, I64, I64]:
    """Sort gaussians, given front to back, into tiles: (tile starts, ids, slot starts, slots).

    The ids of tile t are ids[starts[t]:starts[t + 1]], front to back. The places of gaussian g in
    `ids` are slots[slot_starts[g]:slot_starts[g + 1]].
    """
    count = gaussians.shape[0]
    tiles = columns * rows
    starts = np.zeros(tiles + 1, np.int64)
    slot_starts = np.zeros(count + 1, np.int64)
    capacity = 4 * count + 64
    tile_of = np.empty(capacity, np.int32)
    used = 0
    for k in range(count):
        g = gaussians[k]
        x_from = max(0, math.floor((g[U] - g[HALF_U]) / TILE))
        x_to = min(columns, math.ceil((g[U] + g[HALF_U]) / TILE))
        y_from = max(0, math.floor((g[V] - g[HALF_V]) / TILE))
        y_to = min(rows, math.ceil((g[V] + g[HALF_V]) / TILE))
        for y in range(y_from, y_to):
            for x in range(x_from, x_to):
                if _reaches(g, x * TILE, y * TILE):
                    if used == capacity:
                        larger = np.empty(2 * capacity, np.int32)
                        larger[:capacity] = tile_of
                        tile_of = larger
                        capacity *= 2
                    tile_of[used] = y * columns + x
                    used += 1
                    starts[y * columns + x + 1] += 1
        slot_starts[k + 1] = used
    for t in range(tiles):
        starts[t + 1] += starts[t]
    position = starts[:-1].copy()
    ids = np.empty(used, np.int32)
    slots = np.empty(used, np.int64)
    for k in range(count):
        for s in range(slot_starts[k], slot_starts[k + 1]):
            place = position[tile_of[s]]
            position[tile_of[s]] += 1
            ids[place] = k
            slots[s] = place
    return starts, ids, slot_starts, slots


@compiled(inline="always")
def _pixel_range(g: Any, y0: Any) -> Any:
    """Range of the tile's pixels whose rows lie within the gaussian's half height."""
    first = max(0, math.floor(g[V] - g[HALF_V] - y0 - 0.5))
    end = min(TILE, math.ceil(g[V] + g[HALF_V] - y0 + 0.5))
    return first * TILE, end * TILE


# One flat buffer per tile, so that the compiler can prove that its parts do not overlap. Pixels are
# walked in one loop with unsigned indices and a length known only at run time, because that is
# what LLVM turns into SIMD; rows and columns are looked up.
_T, _ALIVE, _LAST, _C0, _C1, _C2, _COLUMN, _ROW = (np.uintp(k * _PIXELS) for k in range(8))
_BEHIND = _ALIVE  # going backward: colour times image gradient of all that lies behind
_BUFFER = 8 * _PIXELS


@compiled(inline="always")
def _new_tile() -> Any:
    tile = np.zeros(_BUFFER, np.float64)
    for p in range(_PIXELS):
        tile[_T + np.uintp(p)] = 1.0
        tile[_LAST + np.uintp(p)] = -1.0
        tile[_COLUMN + np.uintp(p)] = float(p % TILE)
        tile[_ROW + np.uintp(p)] = float(p // TILE)
    return tile


@compiled(parallel=True, nogil=True, cache=True, fastmath=True)
def composite(
    gaussians: F64, starts: I64, ids: I32, columns: int, image: F64, transmittance: F64, last: I32
) -> None:
    """Blend front to back into image (H, W, 3), transmittance (H, W) and last (H, W).

    `last` is the place in the tile's list of the last gaussian that touched the pixel, -1 if none.
    """
    height, width = transmittance.shape
    for t in numba.prange(starts.shape[0] - 1):
        x0 = (t % columns) * TILE
        y0 = (t // columns) * TILE
        tile = _new_tile()
        for q in range(_PIXELS):
            tile[_ALIVE + np.uintp(q)] = 1.0
        for place in range(starts[t], starts[t + 1]):
            g = gaussians[ids[place]]
            mark = float(place - starts[t])
            xx, xy, yy = 0.5 * g[XX], g[XY], 0.5 * g[YY]
            opacity, limit = g[OPACITY], g[LIMIT]
            red, green, blue = g[RED], g[GREEN], g[BLUE]
            bx = g[U] - x0 - 0.5
            by = g[V] - y0 - 0.5
            first, end = _pixel_range(g, y0)
            for q in range(first, end):
                p = np.uintp(q)
                dx = bx - tile[_COLUMN + p]
                dy = by - tile[_ROW + p]
                sigma = max((xx * dx + xy * dy) * dx + yy * dy * dy, 0.0)
                alpha = min(_ALPHA_MAX, opacity * _exp_minus(min(sigma, 6.0)))
                alpha = alpha * tile[_ALIVE + p] if sigma <= limit else 0.0
                before = tile[_T + p]
                after = before * (1.0 - alpha)
                ends = after <= _TRANSMITTANCE_MIN
                alpha = 0.0 if ends else alpha
                weight = alpha * before
                tile[_ALIVE + p] = 0.0 if ends else tile[_ALIVE + p]
                tile[_T + p] = before if ends else after
                tile[_LAST + p] = mark if alpha > 0.0 else tile[_LAST + p]
                tile[_C0 + p] += weight * red
                tile[_C1 + p] += weight * green
                tile[_C2 + p] += weight * blue
            if place & 15 == 15:
                alive = 0.0
                for q in range(_PIXELS):
                    alive += tile[_ALIVE + np.uintp(q)]
                if alive == 0.0:
                    break
        for r in range(min(TILE, height - y0)):
            for c in range(min(TILE, width - x0)):
                p = np.uintp(r * TILE + c)
                image[y0 + r, x0 + c, 0] = tile[_C0 + p]
                image[y0 + r, x0 + c, 1] = tile[_C1 + p]
                image[y0 + r, x0 + c, 2] = tile[_C2 + p]
                transmittance[y0 + r, x0 + c] = tile[_T + p]
                last[y0 + r, x0 + c] = int(tile[_LAST + p])


@compiled(parallel=True, nogil=True, cache=True, fastmath=True)
def composite_gradient(
    gaussians: F64,
    starts: I64,
    ids: I32,
    columns: int,
    transmittance: F64,
    last: I32,
    grad_image: F64,
    grad_transmittance: F64,
    gradients: F64,
) -> None:
    """Gradient rows (see the G_ columns) for every place of `ids`, back to front per tile.

    With T the transmittance before a gaussian, a its alpha and <c, g> its colour times the image
    gradient: dL/da = T <c, g> - B / (1 - a), B being the same product of all that lies behind it.
    Moments of dL/dsigma over the pixels give the gradients of centre and conic.
    """
    height, width = transmittance.shape
    for t in numba.prange(starts.shape[0] - 1):
        x0 = (t % columns) * TILE
        y0 = (t // columns) * TILE
        tile = _new_tile()
        deepest = -1
        for r in range(min(TILE, height - y0)):
            for c in range(min(TILE, width - x0)):
                p = np.uintp(r * TILE + c)
                tile[_T + p] = transmittance[y0 + r, x0 + c]
                tile[_LAST + p] = float(last[y0 + r, x0 + c])
                tile[_BEHIND + p] = (
                    grad_transmittance[y0 + r, x0 + c] * transmittance[y0 + r, x0 + c]
                )
                tile[_C0 + p] = grad_image[y0 + r, x0 + c, 0]
                tile[_C1 + p] = grad_image[y0 + r, x0 + c, 1]
                tile[_C2 + p] = grad_image[y0 + r, x0 + c, 2]
                deepest = max(deepest, last[y0 + r, x0 + c])
        for place in range(starts[t + 1] - 1, starts[t] + deepest, -1):
            gradients[place, :] = 0.0
        for place in range(starts[t] + deepest, starts[t] - 1, -1):
            g = gaussians[ids[place]]
            mark = float(place - starts[t])
            full_xx, xy, full_yy = g[XX], g[XY], g[YY]
            xx, yy = 0.5 * full_xx, 0.5 * full_yy
            opacity, limit = g[OPACITY], g[LIMIT]
            red, green, blue = g[RED], g[GREEN], g[BLUE]
            bx = g[U] - x0 - 0.5
            by = g[V] - y0 - 0.5
            m00 = m10 = m01 = m20 = m11 = m02 = 0.0
            abs_u = abs_v = grad_red = grad_green = grad_blue = 0.0
            first, end = _pixel_range(g, y0)
            for q in range(first, end):
                p = np.uintp(q)
                dx = bx - tile[_COLUMN + p]
                dy = by - tile[_ROW + p]
                sigma = max((xx * dx + xy * dy) * dx + yy * dy * dy, 0.0)
                raw = opacity * _exp_minus(min(sigma, 6.0))
                raw = raw if (sigma <= limit) & (mark <= tile[_LAST + p]) else 0.0
                alpha = min(_ALPHA_MAX, raw)
                over = 1.0 / (1.0 - alpha)
                before = tile[_T + p] * over
                weight = alpha * before
                shade = red * tile[_C0 + p] + green * tile[_C1 + p] + blue * tile[_C2 + p]
                behind = tile[_BEHIND + p]
                grad_alpha = before * shade - behind * over
                # Where alpha is capped it no longer depends on the gaussian's shape.
                grad_sigma = -raw * grad_alpha if raw <= _ALPHA_MAX else 0.0
                tile[_T + p] = before
                tile[_BEHIND + p] = behind + weight * shade
                along_x, along_y = grad_sigma * dx, grad_sigma * dy
                m00 += grad_sigma
                m10 += along_x
                m01 += along_y
                m20 += along_x * dx
                m11 += along_x * dy
                m02 += along_y * dy
                abs_u += abs(full_xx * along_x + xy * along_y)
                abs_v += abs(xy * along_x + full_yy * along_y)
                grad_red += weight * tile[_C0 + p]
                grad_green += weight * tile[_C1 + p]
                grad_blue += weight * tile[_C2 + p]
            gradients[place, G_U] = full_xx * m10 + xy * m01
            gradients[place, G_V] = xy * m10 + full_yy * m01
            gradients[place, G_XX] = 0.5 * m20
            gradients[place, G_XY] = m11
            gradients[place, G_YY] = 0.5 * m02
            gradients[place, G_OPACITY] = -m00 / opacity
            gradients[place, G_RED] = grad_red
            gradients[place, G_GREEN] = grad_green
            gradients[place, G_BLUE] = grad_blue
            gradients[place, G_ABS_U] = abs_u
            gradients[place, G_ABS_V] = abs_v


@compiled(parallel=True, nogil=True, cache=True)
def gather_gradients(gradients: F64, slot_starts: I64, slots: I64, order: I64, total: F64) -> None:
    """Add each gaussian's gradient rows, in the order of its tiles, into total[order[k]]."""
    for k in numba.prange(order.shape[0]):
        target = order[k]
        for s in range(slot_starts[k], slot_starts[k + 1]):
            for column in range(GRADIENT_COLUMNS):
                total[target, column] += gradients[slots[s], column]
