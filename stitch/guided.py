"""More common points of a pair once it is known roughly where they lie.

The ratio test drops what looks alike in several places; near the place that a first Sim3 predicts
there are few to confuse. Half as many points again, out to the rim of the common ground, is what
lets a small overlap hold the far end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from stitch.sim3 import Sim3, umeyama

_RADII = (0.06, 0.04, 0.03)  # of the target's depth, one after the other
_ALIKE = 0.9  # cosine; a tenth as many pairs pass it at a place beside the right one
_LEAST = 8
_ROWS = 512  # source points looked at together
_Pairs = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Marks:
    """What one of a pair can be found by: `points` (P,3), their `descriptors` (P,128), and what
    one of them may be off by against another (P,), squared."""

    points: npt.NDArray[np.floating[Any]]
    descriptors: npt.NDArray[np.uint8]
    variance: npt.NDArray[np.float64]


def refine(
    source: Marks, target: Marks, sim3: Sim3, limit: float, depth: float
) -> tuple[Sim3, _Pairs]:
    """Sim3 by least squares over the pairs (M,2) found near where `sim3` predicts them and within
    `limit` of there, and these pairs. `depth` is the target's. `sim3` itself and no pairs when too
    few are found."""
    first, pairs = sim3, np.empty((0, 2), np.intp)
    for radius in _RADII:
        pairs = _near(source, target, sim3, radius * depth)
        for _ in range(2):
            a, b = source.points[pairs[:, 0]], target.points[pairs[:, 1]]
            error = np.linalg.norm(sim3.apply(a) - b, axis=1)
            pairs = pairs[error < limit]
            if len(pairs) < _LEAST:
                return first, np.empty((0, 2), np.intp)
            try:
                sim3 = umeyama(
                    source.points[pairs[:, 0]].astype(np.float64),
                    target.points[pairs[:, 1]].astype(np.float64),
                    1.0 / (source.variance[pairs[:, 0]] + target.variance[pairs[:, 1]]),
                )
            except ValueError:
                return first, np.empty((0, 2), np.intp)
    return sim3, pairs


def _near(source: Marks, target: Marks, sim3: Sim3, radius: float) -> _Pairs:
    """Pairs that look alike and lie within `radius`; of each point only its best, both ways."""
    places = sim3.apply(source.points)
    low, high = target.points.min(axis=0) - radius, target.points.max(axis=0) + radius
    inside = np.flatnonzero(((places >= low) & (places <= high)).all(axis=1))
    tree = cKDTree(target.points)
    found: list[tuple[_Pairs, npt.NDArray[np.float32]]] = []
    for start in range(0, len(inside), _ROWS):
        some = inside[start : start + _ROWS]
        near = tree.query_ball_point(places[some], radius)
        i = np.repeat(some, [len(each) for each in near])
        if len(i) == 0:
            continue
        j = np.concatenate([np.asarray(each, np.intp) for each in near])
        a, b = source.descriptors[i].astype(np.float32), target.descriptors[j].astype(np.float32)
        length = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosine = (a * b).sum(axis=1) / np.maximum(length, 1.0)
        alike = cosine > _ALIKE
        found.append((np.stack([i[alike], j[alike]], axis=1), cosine[alike]))
    if not found:
        return np.empty((0, 2), np.intp)
    pairs = np.concatenate([each for each, _ in found])
    order = np.argsort(-np.concatenate([each for _, each in found]), kind="stable")
    pairs = pairs[order]
    _, best = np.unique(pairs[:, 0], return_index=True)
    _, back = np.unique(pairs[:, 1], return_index=True)
    return pairs[np.intersect1d(best, back)]
