"""Gaussians that hang in the water: of no surface, and in the way of every view from above."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from stitch.cells import Cells, key_of, pack, unpack
from stitch.sim3 import F64

_CELL_DEPTHS = 0.1
_ALONE = 0.02  # of the usual number of gaussians in a cell and those around it
_BEFORE_LENS = 0.1  # of the depth: nothing that a survey looks at comes so close
_AROUND = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


class Floaters:
    """Of one member, in one frame throughout. Filled by `add`, closed, then asked by `among`.

    A gaussian floats when its surroundings, three cells of a tenth of the depth wide, hold less
    than a fiftieth of what is usual, or when it hangs right before a camera.
    """

    def __init__(self, centres: F64, depth: float) -> None:
        """`centres` (K,3) of the member's cameras; `depth`: its median depth."""
        self._cell = _CELL_DEPTHS * depth
        self._near = _BEFORE_LENS * depth
        self._centres = centres
        self._count = Cells()
        self._floating = np.empty(0, np.int64)

    def add(self, means: npt.NDArray[np.floating]) -> None:
        """All gaussians at `means` (N,3), block by block."""
        key, usable = key_of(means, self._cell)
        self._count.add(key[usable])

    def close(self) -> None:
        keys, counts = self._count.total()
        around = np.zeros(len(keys), np.int64)
        at = unpack(keys)
        for step in _AROUND:
            key = pack(at + step)
            row = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
            around += np.where(keys[row] == key, counts[row], 0)
        # Of cells, not of gaussians: a coral full of detail must not make bare sand look empty.
        usual = float(np.median(around)) if len(around) else 0.0
        floats = around < _ALONE * usual
        if len(self._centres) and len(keys):
            away, _ = cKDTree(self._centres).query((at + 0.5) * self._cell)
            floats |= away < self._near
        self._floating = keys[floats]

    def among(self, means: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        """Mask (N,) of those at `means` (N,3) that float; what is not finite does."""
        key, usable = key_of(means, self._cell)
        floats = ~usable
        if len(self._floating):
            row = np.minimum(np.searchsorted(self._floating, key), len(self._floating) - 1)
            floats |= self._floating[row] == key
        return floats
