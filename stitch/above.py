"""A scene seen straight from above: its orthomosaic and its height map, streamed from the PLY.

Each gaussian is drawn into the picture of a pyramid whose pixels are about as wide as it is; a
place takes what the finest pictures hold there and the coarser ones' for what is left. Of what
lies above each other the top counts: only gaussians near the highest solid ground are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.ndimage import maximum_filter, zoom

from stitch.cloud_file import open_member
from stitch.gaussians import SH_C0, Gaussians
from stitch.sim3 import F64, Sim3

MAX_SIDE = 1536
"""Pixels along the longer side, at most."""

_PIXEL_WIDTHS = 1.0  # of the median gaussian: a pixel
_LEVELS = 6
_ENOUGH = 0.5  # opacity in a pixel that makes it known
_TOP = 0.15  # of the depth: what lies farther below the top is hidden
_COARSE = 8  # pixels, a cell in which the top is looked for
_FADE = 0.08  # of a gaussian, in the next coarser picture: it closes gaps of a few pixels
_FAINT = -2.2  # logit of an opacity of 0.1
_PERCENT = 0.5  # of the gaussians at each rim may lie outside
_SAMPLE = 200_000
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Above:
    """North up: row 0 is the northernmost. `rgb` (H,W,3) bytes, black where `known` (H,W) is
    False; `height` (H,W) NaN there. `west`, `north`: the outer corner of the first pixel; `pixel`:
    its side, all in the unit of the frame that was drawn in."""

    rgb: npt.NDArray[np.uint8]
    height: F32
    known: npt.NDArray[np.bool_]
    west: float
    north: float
    pixel: float


def above(path: Path, frame: Sim3, depth: float, *, most: int = MAX_SIDE) -> Above | None:
    """The scene in `path` as seen in the frame to which `frame` takes it, whose z is up. `depth`:
    median depth of the cameras there. None when there is nothing to draw. Raises FileUnreadable.
    """
    file = open_member(path)
    places, widths = [np.empty((0, 3))], [np.empty(0)]
    step = max(1, file.count // _SAMPLE)
    for block in file.blocks():
        some = block.select(_solid(block) & (np.arange(len(block)) % step == 0))
        places.append(frame.apply(some.means))
        widths.append(frame.scale * _width(some))
    every, width = np.concatenate(places), np.concatenate(widths)
    if len(every) < 100:
        return None
    low, high = np.percentile(every, [_PERCENT, 100 - _PERCENT], axis=0)
    side = float((high - low)[:2].max())
    pixel = max(float(np.median(width)) * _PIXEL_WIDTHS, side / most, 1e-12)
    shape = tuple(int(n) + 1 for n in ((high - low)[1] // pixel, (high - low)[0] // pixel))
    top = _top(every, low, high, shape, pixel, depth)
    sheets = [_Sheet(shape, level) for level in range(_LEVELS)]
    for block in file.blocks():
        some = block.select(_solid(block))
        at = frame.apply(some.means)
        column, row = (at[:, 0] - low[0]) / pixel, (high[1] - at[:, 1]) / pixel
        inside = (column >= 0) & (row >= 0) & (column < shape[1]) & (row < shape[0])
        cells = (row[inside] // _COARSE).astype(int), (column[inside] // _COARSE).astype(int)
        inside[inside] = np.abs(at[inside, 2] - top[cells]) < _TOP * depth
        wide = np.maximum(frame.scale * _width(some) / pixel, 1e-6)
        level = np.clip(np.ceil(np.log2(wide)), 0, _LEVELS - 1).astype(int)
        # One that is smaller than its pixel does not stand for all of it.
        covers = np.minimum(1.0, 2.0 * np.pi * (wide / (1 << level)) ** 2)
        weight = (covers / (1.0 + np.exp(-some.opacities))).astype(np.float32)
        values = np.concatenate(
            [np.clip(0.5 + SH_C0 * some.sh0, 0, 1), at[:, 2:].astype(np.float32)], axis=1
        )
        for number, sheet in enumerate(sheets):
            mine = inside & (level == number)
            sheet.add(row[mine], column[mine], weight[mine], values[mine])
    for number, sheet in enumerate(sheets[:-1]):
        sheets[number + 1].take(sheet)
    seen, known = _combined(sheets, shape)
    rgb = np.where(known[..., None], np.round(255 * seen[..., :3]), 0).astype(np.uint8)
    height = np.where(known, seen[..., 3], np.nan).astype(np.float32)
    return Above(rgb, height, known, float(low[0]), float(high[1]), pixel)


def _solid(block: Gaussians) -> npt.NDArray[np.bool_]:
    return np.asarray((block.opacities > _FAINT) & np.isfinite(block.means).all(axis=1))


def _width(block: Gaussians) -> F64:
    """(N,) the middle one of a gaussian's three deviations: how wide a flat one lies."""
    return np.asarray(np.exp(np.median(block.scales.astype(np.float64), axis=1)))


def _top(
    every: F64, low: F64, high: F64, shape: tuple[int, ...], pixel: float, depth: float
) -> F32:
    """Height of the ground by coarse cells: the median of what lies near the highest. A cell that
    holds nothing takes its neighbours'."""
    rows, columns = (n // _COARSE + 1 for n in shape)
    row = np.clip((high[1] - every[:, 1]) / pixel // _COARSE, 0, rows - 1).astype(int)
    column = np.clip((every[:, 0] - low[0]) / pixel // _COARSE, 0, columns - 1).astype(int)
    key = row * columns + column
    order = np.lexsort((every[:, 2], key))
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    count = np.diff(starts, append=len(key))
    # Not the very highest: a few floaters are left in any scene.
    highest = every[order[starts + (count * 9) // 10], 2]
    flat = np.full(rows * columns, -np.inf)
    flat[key[order[starts]]] = highest - 0.25 * _TOP * depth
    top = flat.reshape(rows, columns)
    while np.isinf(top).any() and np.isfinite(top).any():
        top = np.where(np.isinf(top), maximum_filter(top, 3), top)
    return top.astype(np.float32)


class _Sheet:
    """One picture of the pyramid, of weighted sums."""

    def __init__(self, shape: tuple[int, ...], level: int) -> None:
        self._step = 1 << level
        rows, columns = (n // self._step + 1 for n in shape)
        self._columns = columns
        self._sums = np.zeros((rows * columns, 5), np.float32)  # weight, then the weighted values

    def add(self, row: F64, column: F64, weight: F32, values: F32) -> None:
        at = (row // self._step).astype(np.int64) * self._columns
        at += (column // self._step).astype(np.int64)
        np.add.at(self._sums[:, 0], at, weight)
        for k in range(4):
            np.add.at(self._sums[:, 1 + k], at, weight * values[:, k])

    def take(self, finer: _Sheet) -> None:
        """What the next finer picture holds, so that it fills the pixels between."""
        picture = finer.picture()
        rows, columns = (n // 2 for n in picture.shape[:2])
        even = picture[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2, 5)
        self.picture()[:rows, :columns] += _FADE * even.sum(axis=(1, 3))

    def picture(self) -> F32:
        """(H,W,5)"""
        return self._sums.reshape(-1, self._columns, 5)


def _combined(sheets: list[_Sheet], shape: tuple[int, ...]) -> tuple[F32, npt.NDArray[np.bool_]]:
    """(H,W,4) values and which pixels are known, from coarse to fine."""
    below = sheets[-1].picture()
    for sheet in reversed(sheets[:-1]):
        picture = sheet.picture()
        wide = zoom(below, (2, 2, 1), order=1, grid_mode=True, mode="nearest")
        wide = wide[: picture.shape[0], : picture.shape[1]]
        wide *= np.clip(1.0 - picture[..., :1] / _ENOUGH, 0.0, 1.0)
        wide += picture
        below = wide
    whole = below[: shape[0], : shape[1]]
    known = whole[..., 0] > _FADE**2
    values = whole[..., 1:] / np.maximum(whole[..., :1], 1e-6)
    return values.astype(np.float32), known
