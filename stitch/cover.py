"""Where a member's gaussians lie close enough together to stand for the ground."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stitch.cells import pack, unpack
from stitch.sim3 import F64

INSIDE = 2
"""Grade of ground that is covered all around."""

_FINEST_DEPTHS = 0.02
_COARSEST_DEPTHS = 0.3
_PER_CELL = 8.0  # gaussians in an occupied cell, on average: fewer say nothing by their absence
_OCCUPIED = 0.25  # of the median: with less, a cell lies on the rim and is mostly bare
_HEIGHTS = 2  # cells up and down in which the same ground may lie
_HALF = 1 << 20  # cells along one axis
_I64 = npt.NDArray[np.int64]


class Cover:
    """Filled by `add`, then asked by `grade`; positions are in the scene's frame.

    `axes` (3,3): rows across, along and up the ground. `depth` is the member's median depth.
    """

    def __init__(self, axes: F64, depth: float) -> None:
        self._axes, self._cell = axes, _FINEST_DEPTHS * depth
        self._half = self._cell
        self._coarsest = _COARSEST_DEPTHS * depth
        self._cells: list[_I64] = []
        self._counts: list[_I64] = []
        self._keys = np.empty(0, np.int64)
        self._inner = np.empty(0, np.int64)
        self._halves = np.empty(0, np.int64)

    def add(self, means: F64) -> None:
        """Gaussians at `means` (N,3); those not finite or absurdly far are left out."""
        with np.errstate(invalid="ignore"):
            near = (np.abs(means) < 0.5 * _HALF * self._cell).all(axis=1)
        if not near.all():
            means = means[near]
        cells, counts = np.unique(pack(self._at(means)), return_counts=True)
        self._cells.append(cells)
        self._counts.append(counts)

    def close(self) -> None:
        """All gaussians have been added: the cells are made as large as their number needs."""
        cells, row = np.unique(np.concatenate(self._cells), return_inverse=True)
        counts = np.bincount(row, np.concatenate(self._counts), len(cells))
        self._halves = cells
        while (
            len(cells)
            and counts.sum() < _PER_CELL * len(cells)
            and 2.0 * self._cell <= self._coarsest
        ):
            self._halves, self._half = cells, self._cell
            cells, row = np.unique(pack(unpack(cells) >> 1), return_inverse=True)
            counts = np.bincount(row, counts, len(cells))
            self._cell *= 2.0
        enough = max(2.0, _OCCUPIED * float(np.median(counts))) if len(counts) else 0.0
        self._keys = cells[counts >= enough]
        self._inner = _surrounded(self._keys)
        self._cells, self._counts = [], []

    def holds(self, places: F64) -> npt.NDArray[np.bool_]:
        """Mask (N,) of places with a gaussian within about half a cell: on a rim, ground that is
        covered and ground that is bare lie in one cell."""
        return _among(self._halves, _cells_at(places, self._axes, self._half))

    def grade(self, places: F64) -> npt.NDArray[np.int8]:
        """(N,) how well the ground at each is covered, or a little above or below it: INSIDE, 1
        on the rim, where the last gaussians lie here and there, 0 not."""
        at = self._at(places)
        return _among(self._keys, at).astype(np.int8) + _among(self._inner, at)

    def _at(self, places: F64) -> _I64:
        return _cells_at(places, self._axes, self._cell)


def _cells_at(places: F64, axes: F64, cell: float) -> _I64:
    cells = np.floor(places @ axes.T / cell)
    near: _I64 = np.clip(cells, 8 - _HALF, _HALF - 8).astype(np.int64)
    return near


def _among(keys: _I64, at: _I64) -> npt.NDArray[np.bool_]:
    """Mask (N,) of the cells `at` (N,3) that are among `keys`, or a little above or below one."""
    if not len(keys):
        return np.zeros(len(at), np.bool_)
    lowest = pack(at) - _HEIGHTS  # cells above each other follow one another
    found = keys[np.minimum(np.searchsorted(keys, lowest), len(keys) - 1)]
    held: npt.NDArray[np.bool_] = (found >= lowest) & (found <= lowest + 2 * _HEIGHTS)
    return held


def _surrounded(keys: _I64) -> _I64:
    """Those with ground on all four sides."""
    at = unpack(keys)
    kept = np.ones(len(keys), np.bool_)
    for side in ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0)):
        kept &= _among(keys, at + np.array(side))
    return keys[kept]
