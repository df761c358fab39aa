"""Who keeps which place of a scene that several members have seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from stitch.cover import INSIDE, Cover
from stitch.sidecar import Sidecar
from stitch.sim3 import F64, Sim3

_FAVOUR = 1.02  # sizes this near count as equal: reconstructions of one track differ by 1 %
_NEAREST = 6  # cameras of a member, of which the one that sees a place best counts
_FLATTEST = 0.3  # cosine of the angle at which the ground is seen; less is not told apart
_CELL_DEPTHS = 0.01
_MAX_CELLS = 1 << 24  # a byte each


@dataclass(frozen=True, slots=True)
class Member:
    """`pose` takes the member's own frame to the scene's."""

    name: str
    pose: Sim3
    sidecar: Sidecar


class Territory:
    """Which member keeps a place that several have seen: the one whose camera saw it best.

    That is the camera of whose pixels the ground there takes the least: distance squared over the
    cosine of the angle to the ground's normal. By distance alone a vehicle that flew low keeps
    what it saw far to its side, flat and smeared, of ground that another flew right over.
    Measured against the density of single captures, this keeps 0.99 to 1.01 of it; concatenation
    keeps 1.75 of it. When two saw it equally well (one track in two clips) the first member keeps
    the place whole. A gaussian reaches over the border it is centred beside, so no seam opens.
    Only members whose gaussians cover the place compete, and on the rim of what one covers those
    go first that cover it all around, so that no hole is cut where a camera passed close by and
    looked elsewhere. Where it is the rim of both, nobody gives way to one that has nothing just
    there.
    """

    def __init__(self, members: Sequence[Member], covers: Sequence[Cover], up: F64) -> None:
        """`covers` (closed) are those of the members' gaussians; `up` (3,): unit normal of the
        ground."""
        self._up = up
        points = [m.pose.apply(m.sidecar.points) for m in members]
        depths = [m.pose.scale * m.sidecar.median_depth for m in members]
        self._cameras = [cKDTree(m.pose.apply(m.sidecar.centres())) for m in members]
        self._covers = covers
        self._low = [p.min(axis=0) - d for p, d in zip(points, depths, strict=True)]
        self._high = [p.max(axis=0) + d for p, d in zip(points, depths, strict=True)]
        largest = max(float(np.prod(h - w)) for w, h in zip(self._low, self._high, strict=True))
        self._cell = max(_CELL_DEPTHS * min(depths), (largest / _MAX_CELLS) ** (1 / 3))

    def keeps(self, own: int, means: F64) -> npt.NDArray[np.bool_]:
        """Mask (N,) of the gaussians at `means` (N,3, scene's frame) that member `own` keeps.
        Those that are not finite are nobody's."""
        kept = np.asarray(np.isfinite(means).all(axis=1))
        places = means[kept]
        stays = np.ones(len(places), np.bool_)
        for other in range(len(self._cameras)):
            if other == own:
                continue
            inside = (places >= self._low[other]) & (places <= self._high[other])
            near = np.flatnonzero(stays & inside.all(axis=1))
            grade, rival = (self._covers[i].grade(places[near]) for i in (own, other))
            stays[near[rival > grade]] = False
            equal = (rival == grade) & (rival > 0)
            rim = equal & (rival < INSIDE)
            equal[rim] = self._covers[other].holds(places[near[rim]])
            near = near[equal]
            mine, theirs = (self._coarseness(i, places[near]) for i in (own, other))
            loses = theirs <= _FAVOUR * mine if other < own else _FAVOUR * theirs < mine
            stays[near[loses]] = False
        kept[kept] = stays
        return kept

    def _coarseness(self, member: int, places: F64) -> F64:
        """(N,) side of a pixel's piece of the ground there, of the camera for which it is least."""
        cameras = self._cameras[member]
        count = min(_NEAREST, cameras.n)
        away, row = cameras.query(places, k=range(1, count + 1))
        height = np.abs((cameras.data @ self._up)[row] - (places @ self._up)[:, None])
        cosine = height / np.maximum(away, 1e-12)
        side: F64 = np.sqrt((away**2 / np.maximum(cosine, _FLATTEST)).min(axis=1))
        return side

    def parcel(self, own: int) -> Parcel:
        """The same for many gaussians of one member, in pieces."""
        return Parcel(self, own, self._low[own], self._high[own], self._cell)


class Parcel:
    """`Territory.keeps` with one decision for each cell of the lattice that all members share,
    a hundredth of the depth wide: 10 million gaussians ask 100,000 questions."""

    def __init__(self, land: Territory, own: int, low: F64, high: F64, cell: float) -> None:
        self._land, self._own, self._cell = land, own, cell
        self._first = np.floor(low / cell).astype(np.int64)
        self._shape = np.floor(high / cell).astype(np.int64) - self._first + 1
        self._answers = np.full(int(np.prod(self._shape)), -1, np.int8)  # -1: not asked yet

    def keeps(self, means: F64) -> npt.NDArray[np.bool_]:
        """As `Territory.keeps`; a place far from all the member's points is asked by itself."""
        with np.errstate(invalid="ignore"):  # what is not finite lies in no cell
            cell = np.floor(means / self._cell) - self._first
            inside = ((cell >= 0) & (cell < self._shape)).all(axis=1)
        kept = np.zeros(len(means), np.bool_)
        kept[~inside] = self._land.keeps(self._own, means[~inside])
        index = np.ravel_multi_index(tuple(cell[inside].astype(np.int64).T), tuple(self._shape))
        new = np.unique(index[self._answers[index] < 0])
        at = np.stack(np.unravel_index(new, tuple(self._shape)), axis=1) + self._first
        centres = np.asarray((at + 0.5) * self._cell, np.float64)
        self._answers[new] = self._land.keeps(self._own, centres)
        kept[inside] = self._answers[index] == 1
        return kept
