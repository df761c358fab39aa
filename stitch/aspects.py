"""Ground that several members saw, each from elsewhere: its colours by where it is seen from.

A member knows its ground as its own cameras saw it; water and vignette are in its colours, and
along the directions of another's cameras they are wrong. So the gaussians that stay get a step in
bands 0 and 1: by the mean of a cell they then look to the other's cameras as the other's own did
there, and to their own cameras as before. Where both looked from one side these two disagree, and
what the member's own cameras saw weighs more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array, csr_array
from scipy.spatial import cKDTree

from stitch.cells import key_of, pack, unpack
from stitch.gaussians import F32, Gaussians
from stitch.harmonise import Tint
from stitch.sim3 import F64, Sim3, sh_basis, sh_rotation
from stitch.standin import STAND_IN
from stitch.territory import Member

_NEAREST = 6  # cameras of a member that stand for where it saw a place from
_OWN = 3.0  # weight of the member's own cameras
_PULL = 0.004  # for each camera, towards no step
_FIRST = 4  # coefficients of bands 0 and 1
_WAITING = 1 << 16  # sums of cells that are kept apart before they are joined
_CORNERS = np.stack(np.meshgrid(*[(0, 1)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
_I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Means:
    """Of one member's gaussians by cells of the scene: `keys` (C,) ascending; `colours` (C,4,3),
    mean coefficients of bands 0 and 1 in the scene's frame; `weight` (C,), how much is there, as
    an area of the scene."""

    keys: _I64
    colours: F64
    weight: F64


class Shades:
    """Mean colours of one member's gaussians by cells of the scene. Filled by `add`, then asked for
    `means`; in the memory of the cells met."""

    def __init__(self, cell: float, pose: Sim3) -> None:
        """`pose` takes the member's frame to the scene's."""
        self._cell, self._turn = cell, sh_rotation(pose.rotation, 1)
        self._unit = 2.0 * np.log(pose.scale)
        self._keys: list[_I64] = []
        self._sums: list[F64] = []
        self._waiting = 0

    def add(self, places: F64, block: Gaussians) -> None:
        """Gaussians of the member's frame, at `places` (N,3) of the scene."""
        key, usable = key_of(places, self._cell)
        cells, row = np.unique(key[usable], return_inverse=True)
        scales = np.sort(block.scales[usable].astype(np.float64), axis=1)
        with np.errstate(over="ignore"):
            area = np.exp(self._unit + scales[:, 1] + scales[:, 2])
            weight = area / (1.0 + np.exp(-block.opacities[usable]))
        values = np.zeros((len(weight), 1 + 3 * _FIRST))
        values[:, 0] = 1.0
        values[:, 1:4] = block.sh0[usable]
        rest = block.shN[usable, : _FIRST - 1].reshape(len(weight), -1)
        values[:, 4 : 4 + rest.shape[1]] = rest
        with np.errstate(invalid="ignore"):
            broken = ~np.isfinite(weight * values.sum(axis=1))
        weight[broken], values[broken] = 0.0, 0.0  # else one of them breaks all around it
        weight = np.minimum(weight, 4.0 * np.median(weight)) if len(weight) else weight
        into = csc_array((weight, row, np.arange(len(row) + 1)), shape=(len(cells), len(row)))
        self._keys.append(cells)
        self._sums.append(into @ values)
        self._waiting += len(cells)
        if self._waiting > max(_WAITING, 2 * len(self._keys[0])):
            self._join()

    def means(self, tint: Tint | None) -> Means:
        """Of the gaussians as `tint` makes them."""
        if not self._keys:
            return Means(np.empty(0, np.int64), np.empty((0, _FIRST, 3)), np.empty(0))
        self._join()
        weight = self._sums[0][:, 0]
        mean = (self._sums[0][:, 1:] / np.maximum(weight[:, None], 1e-300)).reshape(-1, _FIRST, 3)
        mean[:, 1:] = self._turn @ mean[:, 1:]
        mean = tint.of_coefficients(mean) if tint else mean
        return Means(self._keys[0], mean, weight)

    def _join(self) -> None:
        cells, row = np.unique(np.concatenate(self._keys), return_inverse=True)
        sums = np.zeros((len(cells), 1 + 3 * _FIRST))
        np.add.at(sums, row, np.concatenate(self._sums))
        self._keys, self._sums, self._waiting = [cells], [sums], len(cells)


class Aspect:
    """Steps of one member's colours by its cells; none where nobody else saw the ground."""

    def __init__(self, cell: float, keys: _I64, steps: F64) -> None:
        """`keys` (C,) ascending: the member's cells; `steps` (C,4,3) of bands 0 and 1."""
        self.cell, self.keys, self.steps = cell, keys, steps
        self._flat = steps.reshape(len(keys), -1).astype(np.float32)
        # Between which eight cells' middles a place lies is looked up for all of them at once.
        moving = unpack(keys[self._flat.any(axis=1)])
        self._low = np.unique(pack((moving[:, None] - _CORNERS).reshape(-1, 3)))
        corners = pack((unpack(self._low)[:, None] + _CORNERS).reshape(-1, 3))
        row = np.minimum(np.searchsorted(keys, corners), max(len(keys) - 1, 0)).reshape(-1, 8)
        self._row = row.astype(np.int32)
        self._held = (keys[row] == corners.reshape(-1, 8)).astype(np.float32)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All of it, to be stored: applied with the steps' signs turned, it undoes the change."""
        return {"cell": np.array(self.cell), "keys": self.keys, "steps": self.steps}

    @property
    def moves(self) -> bool:
        """Whether there is any step."""
        return len(self._low) > 0

    def apply(self, gaussians: Gaussians) -> Gaussians:
        """Those of the member, in the scene's frame; of degree 1 at least when anything moves."""
        if not self.moves:
            return gaussians
        if not gaussians.sh_degree:
            bands = np.zeros((len(gaussians), _FIRST - 1, 3), np.float32)
            gaussians = replace(gaussians, shN=bands)
        near, step = self._at(gaussians.means)
        changed = gaussians.copied()
        changed.sh0[near] += step[:, 0]
        changed.shN[near, : _FIRST - 1] += step[:, 1:]
        return changed

    def _at(self, means: F32) -> tuple[npt.NDArray[np.intp], F32]:
        """The gaussians for which there is a step, and it (N,4,3): between the middles of the cells
        around, as far as the member holds them."""
        place = np.divide(means.T, self.cell, dtype=np.float64) - 0.5
        floor = np.floor(np.clip(place, -1e6, 1e6, out=place))
        key = pack(floor.T.astype(np.int64))
        low = np.minimum(np.searchsorted(self._low, key), len(self._low) - 1)
        near = np.flatnonzero(self._low[low] == key)
        low = low[near]
        part = (place - floor)[:, near].astype(np.float32)
        share = self._held[low]
        for corner, column in zip(_CORNERS, share.T, strict=True):
            for far, along in zip(corner, part, strict=True):
                column *= along if far else 1.0 - along
        share /= share.sum(axis=1, keepdims=True) + np.float32(1e-12)
        ends = np.arange(0, share.size + 1, 8, dtype=np.int32)
        shape = (len(near), len(self.keys))
        mean = csr_array((share.ravel(), self._row[low].ravel(), ends), shape=shape) @ self._flat
        return near, np.asarray(mean.reshape(-1, _FIRST, 3), np.float32)


def aspects(members: Sequence[Member], means: Sequence[Means], cell: float) -> list[Aspect]:
    """One for each member; `means` are those of all its gaussians. Of a member that has no cameras
    of its own nobody knows from where it saw the ground: it stays as it is."""
    cameras = [cKDTree(member.pose.apply(member.sidecar.centres())) for member in members]
    known = [STAND_IN not in member.sidecar.quality for member in members]
    at = [unpack(one.keys) for one in means]
    near = _neighbours(at)
    found = []
    for own, mine in enumerate(means):
        middles = np.asarray((at[own] + 0.5) * cell, np.float64)
        steps = np.zeros_like(mine.colours)
        right, shared = np.zeros_like(steps), np.zeros(len(steps), np.bool_)
        normal = np.zeros((len(steps), _FIRST, _FIRST))
        for other in near[own] if known[own] else ():
            if not known[other]:
                continue
            theirs = means[other]
            _, here, there = np.intersect1d(
                mine.keys, theirs.keys, assume_unique=True, return_indices=True
            )
            # On its rim the other holds less of a cell, and that is not the mean of the whole.
            held = theirs.weight[there] / np.maximum(mine.weight[here], 1e-300)
            basis = _from(cameras[other], middles[here]) * np.minimum(held, 1.0)[:, None, None]
            normal[here] += _squares(basis)
            wanted = basis @ (theirs.colours[there] - mine.colours[here])
            right[here] += basis.transpose(0, 2, 1) @ wanted
            shared[here] = True
        normal = normal[shared] + _OWN * _squares(_from(cameras[own], middles[shared]))
        pull = _PULL * _NEAREST * np.eye(_FIRST)
        steps[shared] = np.linalg.solve(normal + pull, right[shared])
        found.append(Aspect(cell, mine.keys, steps))
    return found


def _neighbours(cells: Sequence[_I64]) -> list[list[int]]:
    """For each member those whose cells (C,3) may be its own, too: their boxes meet."""
    far = np.iinfo(np.int64).max
    low = np.stack([at.min(axis=0, initial=far) for at in cells])
    high = np.stack([at.max(axis=0, initial=-far) for at in cells])
    found = []
    for own in range(len(cells)):
        meet = ((low[own] <= high) & (low <= high[own])).all(axis=1)
        found.append([int(other) for other in np.flatnonzero(meet) if other != own])
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
