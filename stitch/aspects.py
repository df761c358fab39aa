"""Ground that several members saw, each from elsewhere: its colours by where it is seen from.

A member knows its ground as its own cameras saw it; water and vignette are in its colours, and
along the directions of another's cameras they are wrong. So the gaussians that stay get a step in
bands 0 and 1: by the mean of a cell they then look to the other's cameras as the other's own did
there, and to their own cameras as before. Where both looked from one side these two disagree, and
what the member's own cameras saw weighs more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from stitch.cells import key_of, pack, unpack
from stitch.gaussians import F32, Gaussians
from stitch.sim3 import F64, sh_basis, sh_rotation
from stitch.territory import Member

_NEAREST = 6  # cameras of a member that stand for where it saw a place from
_OWN = 3.0  # weight of the member's own cameras
_PULL = 0.004  # for each camera, towards no step
_FIRST = 4  # coefficients of bands 0 and 1
_CORNERS = np.stack(np.meshgrid(*[(0, 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)


class Shades:
    """Mean colours of one member's gaussians by cells of the scene. Filled by `add`, then asked for
    `total`."""

    def __init__(self, cell: float, rotation: F64) -> None:
        """`rotation` (3,3) takes the member's frame to the scene's."""
        self._cell, self._turn = cell, sh_rotation(rotation, 1)
        self._keys: list[npt.NDArray[np.int64]] = []
        self._sums: list[F64] = []

    def add(self, places: F64, block: Gaussians) -> None:
        """Gaussians of the member's frame, at `places` (N,3) of the scene."""
        key, usable = key_of(places, self._cell)
        cells, row = np.unique(key[usable], return_inverse=True)
        scales = np.sort(block.scales[usable].astype(np.float64), axis=1)
        weight = np.exp(scales[:, 1] + scales[:, 2]) / (1.0 + np.exp(-block.opacities[usable]))
        weight = np.minimum(weight, 4.0 * np.median(weight)) if len(weight) else weight
        columns = [weight]
        for band in (block.sh0[usable, None], block.shN[usable, : _FIRST - 1]):
            columns += [weight * column for column in band.reshape(len(weight), -1).T]
        sums = np.zeros((len(cells), 1 + 3 * _FIRST))
        for number, column in enumerate(columns):
            sums[:, number] = np.bincount(row, column, len(cells))
        self._keys.append(cells)
        self._sums.append(sums)

    def total(self) -> tuple[npt.NDArray[np.int64], F64]:
        """Cells, ascending, and the mean coefficients (C,4,3) of bands 0 and 1 there, in the
        scene's frame."""
        if not self._keys:
            return np.empty(0, np.int64), np.empty((0, _FIRST, 3))
        cells, row = np.unique(np.concatenate(self._keys), return_inverse=True)
        sums = np.zeros((len(cells), 1 + 3 * _FIRST))
        np.add.at(sums, row, np.concatenate(self._sums))
        mean = (sums[:, 1:] / np.maximum(sums[:, :1], 1e-300)).reshape(-1, _FIRST, 3)
        mean[:, 1:] = self._turn @ mean[:, 1:]
        return cells, mean


@dataclass(frozen=True, slots=True, eq=False)
class Aspect:
    """Steps (C,4,3) of one member's colours by its cells; none where nobody else saw the ground."""

    cell: float
    keys: npt.NDArray[np.int64]
    steps: F64

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All of it, to be stored: taken from the scene's colours again, it undoes the change."""
        return {"cell": np.array(self.cell), "keys": self.keys, "steps": self.steps}

    def apply(self, gaussians: Gaussians) -> Gaussians:
        """Those of the member, in the scene's frame; of degree 1 at least afterwards."""
        step = self._at(gaussians.means)
        rest = gaussians.shN.copy()
        if not gaussians.sh_degree:
            rest = np.zeros((len(gaussians), _FIRST - 1, 3), np.float32)
        rest[:, : _FIRST - 1] += step[:, 1:]
        return Gaussians(
            gaussians.means,
            gaussians.scales,
            gaussians.quats,
            gaussians.opacities,
            gaussians.sh0 + step[:, 0],
            rest,
        )

    def _at(self, means: F32) -> F32:
        """(N,4,3) between the middles of the cells around, as far as the member holds them."""
        place = means.astype(np.float64) / self.cell - 0.5
        low = np.floor(place)
        part = place - low
        found = np.zeros((len(means), _FIRST, 3))
        weights = np.full(len(means), 1e-12)
        for corner in _CORNERS if len(self.keys) else ():
            key = pack(np.clip(low + corner, -1e6, 1e6).astype(np.int64))
            row = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
            share = np.where(corner, part, 1.0 - part).prod(axis=1)
            share *= self.keys[row] == key
            weights += share
            found += share[:, None, None] * self.steps[row]
        found /= weights[:, None, None]
        return np.asarray(found, np.float32)


def aspects(members: Sequence[Member], shades: Sequence[Shades], cell: float) -> list[Aspect]:
    """One for each member; `shades` have all its gaussians."""
    totals = [one.total() for one in shades]
    cameras = [cKDTree(member.pose.apply(member.sidecar.centres())) for member in members]
    found = []
    for own, (keys, mine) in enumerate(totals):
        middles = np.asarray((unpack(keys) + 0.5) * cell, np.float64)
        seen = _from(cameras[own], middles)
        normal = _OWN * _squares(seen)
        right = np.zeros((len(keys), _FIRST, 3))
        shared = np.zeros(len(keys), np.bool_)
        for other, (theirs, colours) in enumerate(totals):
            if other == own:
                continue
            _, here, there = np.intersect1d(keys, theirs, assume_unique=True, return_indices=True)
            basis = _from(cameras[other], middles[here])
            normal[here] += _squares(basis)
            wanted = basis @ (colours[there] - mine[here])
            right[here] += basis.transpose(0, 2, 1) @ wanted
            shared[here] = True
        steps = np.zeros((len(keys), _FIRST, 3))
        pull = _PULL * _NEAREST * np.eye(_FIRST)
        steps[shared] = np.linalg.solve(normal[shared] + pull, right[shared])
        found.append(Aspect(cell, keys, steps))
    return found


def _from(cameras: cKDTree, places: F64) -> F64:
    """(N,K,4) bands 0 and 1 along the directions from the nearest cameras."""
    count = min(_NEAREST, cameras.n)
    _, row = cameras.query(places, k=range(1, count + 1))
    ways = places[:, None] - cameras.data[row]
    ways /= np.maximum(np.linalg.norm(ways, axis=2, keepdims=True), 1e-12)
    return sh_basis(ways.reshape(-1, 3), 1).reshape(len(places), count, _FIRST)


def _squares(basis: F64) -> F64:
    return np.asarray(basis.transpose(0, 2, 1) @ basis)
