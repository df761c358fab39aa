"""How well two members of a scene join where both saw the ground: density, height, colour."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stitch.cells import key_of
from stitch.gaussians import F32, SH_C0
from stitch.sim3 import F64

CELL_DEPTHS = 0.1
"""Side of the cells in which two members are compared, in median depths of the scene."""

_MIN_GAUSSIANS = 4  # in a cell, of each of the two
COUNT, _KEPT, _PLACE, COLOUR = 0, 1, slice(2, 5), slice(5, 8)


class Tally:
    """Sums of one member's gaussians by cells of the scene."""

    def __init__(self, cell: float) -> None:
        self._cell = cell
        self._keys: list[npt.NDArray[np.int64]] = []
        self._sums: list[F64] = []

    def add(self, means: F64, sh0: F32, kept: npt.NDArray[np.bool_]) -> None:
        """Gaussians at `means` (N,3) with colours `sh0` (N,3); `kept` says which stayed. Those
        not finite or absurdly far are left out."""
        key, usable = key_of(means, self._cell)
        if not usable.all():
            key, kept, means, sh0 = key[usable], kept[usable], means[usable], sh0[usable]
        cells, row = np.unique(key, return_inverse=True)
        columns = [np.ones(len(key)), kept, *means.T, *sh0.T]
        sums = [np.bincount(row, column, len(cells)) for column in columns]
        self._keys.append(cells)
        self._sums.append(np.stack(sums, axis=1))

    def total(self) -> tuple[npt.NDArray[np.int64], F64]:
        """Cells, ascending, and their sums (C,8): gaussians, those kept, positions, sh0."""
        if not self._keys:
            return np.empty(0, np.int64), np.empty((0, 8))
        keys = np.concatenate(self._keys)
        cells, row = np.unique(keys, return_inverse=True)
        sums = np.zeros((len(cells), 8))
        np.add.at(sums, row, np.concatenate(self._sums))
        self._keys, self._sums = [cells], [sums]
        return cells, sums


@dataclass(frozen=True, slots=True)
class Seam:
    """Two members, by number, and the cells that both hold."""

    first: int
    second: int
    cells: int
    density: float  # gaussians of all members kept there over those of the cell's main owner
    offset: float  # median distance of both surfaces along the ground's normal, scene's unit
    colour_step: float  # median distance of both mean colours, RGB in 0..1


def seams(tallies: Sequence[Tally], up: F64) -> list[Seam]:
    """Of every two members that share cells. `up` (3,): unit normal of the ground."""
    totals = [tally.total() for tally in tallies]
    everywhere, row = np.unique(np.concatenate([keys for keys, _ in totals]), return_inverse=True)
    before = np.zeros((len(totals), len(everywhere)))
    kept = np.zeros_like(before)
    rows = np.split(row, np.cumsum([len(keys) for keys, _ in totals])[:-1])
    for number, ((_, sums), places) in enumerate(zip(totals, rows, strict=True)):
        before[number, places], kept[number, places] = sums[:, COUNT], sums[:, _KEPT]
    owner = np.where(kept.max(axis=0) > 0, kept.argmax(axis=0), before.argmax(axis=0))
    wanted = before[owner, np.arange(len(everywhere))]
    found = []
    for a, b in itertools.combinations(range(len(totals)), 2):
        both = np.flatnonzero((before[a] >= _MIN_GAUSSIANS) & (before[b] >= _MIN_GAUSSIANS))
        if len(both) == 0:
            continue
        mean = []
        for number in (a, b):
            keys, sums = totals[number]
            mine = sums[np.searchsorted(keys, everywhere[both])]
            mean.append(mine / mine[:, [COUNT]])
        step = mean[1] - mean[0]
        found.append(
            Seam(
                a,
                b,
                cells=len(both),
                density=float(kept[:, both].sum() / wanted[both].sum()),
                offset=float(np.median(np.abs(step[:, _PLACE] @ up))),
                colour_step=float(SH_C0 * np.median(np.linalg.norm(step[:, COLOUR], axis=1))),
            )
        )
    return found
