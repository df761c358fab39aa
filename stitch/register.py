"""Pairwise registration of two reconstructions from the descriptors of their 3D points.

Image evidence only: on flat ground geometry alone gives confident wrong answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pycolmap

from stitch.bend import curvature
from stitch.guided import Marks, refine
from stitch.sidecar import Sidecar
from stitch.sim3 import F64, Sim3, umeyama
from stitch.uncertainty import far_error

MAX_ERROR_DEPTHS = 0.02
"""Two points agree within this share of the target's median depth (2 to 3 % measured best)."""

LOOSE_DEPTHS = 0.15
"""Two points within this lie near each other: what is farther is a false match."""

_CHUNK = 1024  # descriptors matched at a time: at most 50 MB for two merged scenes
_SEED = 1
_MIN_TRIALS = 500
_MAX_TRIALS = 20_000  # finds a 5 % inlier share, a quarter of what is accepted
_POLISH_ROUNDS = 3
_DIRECTIONS = 18
_AT_MOST = 2000  # points whose ground is measured
_MIN_GUIDES = 4
KEPT = 0.95  # of the inliers, which guided matches must not lose
_Pairs = npt.NDArray[np.intp]

Method = Literal["points", "frames", "raster", "pinned"]
"""What an edge is made from: descriptors of 3D points, frames that both reconstructions hold,
pictures of the clouds from above, points that an operator named."""


@dataclass(frozen=True, slots=True)
class Check:
    """By how much a second way to register a pair differs from the first."""

    angle_deg: float
    scale: float  # of its logarithm
    offset: float  # over the target's extent
    share: float = 1.0  # of the points made from identical keypoints, those that one Sim3 explains
    identical: int = 0  # how many such points there are; 0: the descriptors' points were asked


@dataclass(frozen=True, slots=True)
class Edge:
    """What the images say of one pair. `source` and `target` are numbers of members."""

    source: int
    target: int
    matches: int  # mutual nearest neighbours that pass the ratio test
    inliers: int  # matches that one Sim3 explains
    hull_share: float  # of the smaller one's ground, what the inliers span where they span least
    residual: float  # root mean square of the inliers, in median depths of the target
    sim3: Sim3 | None  # source -> target; None when no three matches agree
    method: Method = "points"
    loose: int | None = None  # matches that lie near each other under it; None: not looked at
    bend: float = 0.0  # how far a bend carries the far end off, at least, over the extent
    far_error: float = 0.0  # expected misplacement of the farthest ground, over the extent
    frames: int = 0  # method "frames": common frames it is made from
    check: Check | None = None  # method "frames": against the points

    @property
    def agreement(self) -> float:
        """Of the matches that lie near each other, those that one Sim3 explains: what is left out
        are no false matches, but a reconstruction that is bent."""
        return self.inliers / self.loose if self.loose else 1.0

    @property
    def share(self) -> float:
        """Inliers of the matches."""
        return self.inliers / self.matches if self.matches else 0.0


def register(
    source_number: int, source: Sidecar, target_number: int, target: Sidecar, ratio: float
) -> Edge:
    """Best Sim3 from `source` to `target` with its evidence; whether that is enough is for
    `stitch.score`. Deterministic. `ratio` is of the distances to best and second best match."""
    pairs = match(source.descriptors, target.descriptors, ratio)
    a = source.points[pairs[:, 0]].astype(np.float64)
    b = target.points[pairs[:, 1]].astype(np.float64)
    limit = MAX_ERROR_DEPTHS * target.median_depth
    sim3 = robust_sim3(a, b, limit)
    if sim3 is None:
        return Edge(source_number, target_number, len(pairs), 0, 0.0, 0.0, None)
    error = np.linalg.norm(sim3.apply(a) - b, axis=1)
    inlier, loose = error < limit, error < LOOSE_DEPTHS * target.median_depth
    _, axes = footprint_axes(target.points)
    _, extent = target.extent()
    bend = curvature(b[loose], sim3.apply(a[loose]) - b[loose], sim3.apply(source.points), axes)
    sim3, a, b = _guided(source, target, sim3, a, b, inlier, limit)
    apart = sim3.apply(a) - b
    return Edge(
        source_number,
        target_number,
        matches=len(pairs),
        inliers=int(inlier.sum()),
        hull_share=max(hull_share(source.points, a), hull_share(target.points, b)),
        residual=float(np.sqrt((apart**2).sum(axis=1).mean())) / target.median_depth,
        sim3=sim3,
        loose=int(loose.sum()),
        bend=bend / extent,
        far_error=far_error(b, apart, sim3.apply(source.points), target.median_depth) / extent,
    )


def _guided(
    source: Sidecar,
    target: Sidecar,
    sim3: Sim3,
    a: F64,
    b: F64,
    inlier: npt.NDArray[np.bool_],
    limit: float,
) -> tuple[Sim3, F64, F64]:
    """A Sim3 from all common points near those of `inlier`, rows of `a` and `b`, and these points;
    how many are inliers is not changed by what is found with their help."""
    if inlier.sum() >= _MIN_GUIDES:
        better, near = refine(_marks(source), _marks(target), sim3, limit, target.median_depth)
        kept = np.linalg.norm(better.apply(a) - b, axis=1) < limit
        if len(near) >= inlier.sum() and kept.sum() >= KEPT * inlier.sum():
            return (
                better,
                source.points[near[:, 0]].astype(np.float64),
                target.points[near[:, 1]].astype(np.float64),
            )
    return sim3, a[inlier], b[inlier]


def _marks(sidecar: Sidecar) -> Marks:
    """What a point is off by falls with the number of frames that saw it again."""
    again = np.maximum(sidecar.track_length.astype(np.float64) - 1.0, 1.0)
    return Marks(sidecar.points, sidecar.descriptors, 1.0 / again)


def match(source: npt.NDArray[np.uint8], target: npt.NDArray[np.uint8], ratio: float) -> _Pairs:
    """Pairs (M,2) of rows of two descriptor tables (P,128) and (Q,128): mutual nearest
    neighbours whose distance is below `ratio` of that to the second best in `target`."""
    if len(source) < 1 or len(target) < 2:
        return np.empty((0, 2), np.intp)
    a, b = _unit(source), _unit(target)
    best = np.empty(len(a), np.intp)
    passes = np.empty(len(a), np.bool_)
    back = np.zeros(len(b), np.intp)
    back_value = np.full(len(b), -np.inf, np.float32)
    for start in range(0, len(a), _CHUNK):
        cosine = a[start : start + _CHUNK] @ b.T
        rows = np.arange(len(cosine))
        column_best = cosine.argmax(axis=0)
        column_value = cosine[column_best, np.arange(len(b))]
        better = column_value > back_value
        back[better] = column_best[better] + start
        back_value[better] = column_value[better]
        first = cosine.argmax(axis=1)
        best[start : start + _CHUNK] = first
        nearest = _distance(cosine[rows, first])
        cosine[rows, first] = -np.inf
        second = _distance(cosine.max(axis=1))
        passes[start : start + _CHUNK] = nearest < ratio * second
    index = np.flatnonzero(passes & (back[best] == np.arange(len(a))))
    return np.stack([index, best[index]], axis=1)


def footprint_axes(points: npt.NDArray[np.floating[Any]]) -> tuple[F64, F64]:
    """Centre (3,) and the two axes (2,3) in which the points spread most: for a survey, the
    ground. Distant outliers are left out."""
    centre = np.median(points, axis=0).astype(np.float64)
    offset = points - centre
    distance = np.linalg.norm(offset, axis=1)
    core = offset[distance <= np.percentile(distance, 95)]
    _, _, axes = np.linalg.svd(core - core.mean(axis=0), full_matrices=False)
    return centre, axes[:2].astype(np.float64)


def robust_sim3(source: F64, target: F64, limit: float) -> Sim3 | None:
    """Sim3 from `source` (N,3) to `target` (N,3) that explains the most rows within `limit`; None
    when no three agree. Deterministic."""
    if len(source) < 3:
        return None
    options = pycolmap.RANSACOptions()
    options.max_error = limit
    options.random_seed = _SEED
    options.min_num_trials = _MIN_TRIALS
    options.max_num_trials = _MAX_TRIALS
    found = pycolmap.estimate_sim3d_robust(source, target, options)
    if found is None or not 0.0 < found["tgt_from_src"].scale < np.inf:
        return None
    first = found["tgt_from_src"]
    sim3 = Sim3(first.scale, first.rotation.matrix(), first.translation)
    for _ in range(_POLISH_ROUNDS):
        inlier = np.linalg.norm(sim3.apply(source) - target, axis=1) < limit
        try:
            sim3 = umeyama(source[inlier], target[inlier])
        except ValueError:
            return None
    return sim3


def hull_share(points: npt.NDArray[np.float32], inliers: F64) -> float:
    """How much of the ground of `points` (its middle 98 %) the `inliers` span, in the direction in
    which they span least of it.

    By length, as a lever: common ground of 7 % in a corner holds the far end as well as a stripe
    of 20 % along one end, and a line holds nothing however long it is.
    """
    if len(inliers) < 3:
        return 0.0
    centre, axes = footprint_axes(points)
    turns = np.arange(_DIRECTIONS) * np.pi / _DIRECTIONS
    across = axes.T @ np.stack([np.cos(turns), np.sin(turns)])
    some = points[:: max(1, len(points) // _AT_MOST)]
    low, high = np.percentile((some - centre) @ across, [1, 99], axis=0)
    span = np.ptp((inliers - centre) @ across, axis=0)
    return float(min(1.0, (span / np.maximum(high - low, 1e-12)).min()))


def _unit(descriptors: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    values = descriptors.astype(np.float32)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1.0)
    return values


def _distance(cosine: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    distance: npt.NDArray[np.float32] = np.sqrt(np.maximum(2.0 - 2.0 * cosine, 1e-9))
    return distance
