"""Counting by the cells of a cubic lattice, block by block, in the memory of the cells met."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_BITS = 21  # of a cell's number along one axis
_HALF = 1 << (_BITS - 1)
_I64 = npt.NDArray[np.int64]


def key_of(
    points: npt.NDArray[np.floating[Any]], cell: float
) -> tuple[_I64, npt.NDArray[np.bool_]]:
    """(N,) one number for the cell of each point (N,3), and which points have one: those that are
    finite and not absurdly far. The number of the others is 0."""
    with np.errstate(invalid="ignore"):
        # Each axis side by side: numpy takes a third of the time then.
        at = np.floor(np.divide(points.T, cell, order="C")).T
        if len(at) and at.min() > -_HALF and at.max() < _HALF:  # as good as always
            return pack(at.astype(np.int64)), np.ones(len(at), np.bool_)
        usable = (np.abs(at) < _HALF).all(axis=1)
    return pack(np.where(usable[:, None], at, -_HALF).astype(np.int64)), usable


def pack(at: _I64) -> _I64:
    """(N,) one number for each cell, ascending by axis, from those along the axes (N,3)."""
    key: _I64 = at[:, 0] + _HALF
    for axis in (1, 2):
        key <<= _BITS
        key += at[:, axis] + _HALF
    return key


def unpack(keys: _I64) -> _I64:
    """The inverse of `pack`."""
    mask = (1 << _BITS) - 1
    return np.stack([keys >> 2 * _BITS, (keys >> _BITS) & mask, keys & mask], axis=1) - _HALF


class Cells:
    """How many keys of each kind were added."""

    def __init__(self) -> None:
        self._keys: list[_I64] = []
        self._counts: list[_I64] = []

    def add(self, keys: _I64) -> None:
        cells, counts = np.unique(keys, return_counts=True)
        self._keys.append(cells)
        self._counts.append(counts)
        if len(self._keys) > 64:
            self.total()

    def total(self) -> tuple[_I64, _I64]:
        """Kinds, ascending, and their numbers."""
        if not self._keys:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        keys, row = np.unique(np.concatenate(self._keys), return_inverse=True)
        counts = np.bincount(row, np.concatenate(self._counts), len(keys)).astype(np.int64)
        self._keys, self._counts = [keys], [counts]
        return keys, counts
