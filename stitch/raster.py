"""Clouds without a sidecar: seen straight from above, described by SIFT, lifted back to 3D.

For a survey the ground is near a plane; what a camera high above it would draw carries the same
texture in both clouds. Scale, heading and which side is up are all unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, map_coordinates, median_filter

from stitch import sift
from stitch.guided import Marks, refine
from stitch.register import KEPT, Edge, hull_share, match, robust_sim3
from stitch.sim3 import F64, Sim3
from stitch.uncertainty import far_error

MAX_POINTS = 300_000
"""Points of a cloud that are drawn; more make the raster no sharper than SIFT can use."""

MAX_FEATURES = 3000
_MAX_SIDE = 900  # pixels
_CELL_POINTS = 2.0  # of the mean, in a pixel: the raster has few holes and loses little
_LOOSER = 0.05  # a rough picture keeps fewer matches; sizes, directions and places sort them out
_PLANE_TRIALS = 200
_PLANE_SAMPLE = 3000
_ON_PLANE = 0.015  # of the extent
_ABOVE = 0.12  # of the extent: what lies farther from the ground's median height is not drawn
_FLOATER_IQR = 2.0
_FLOATER_FLOOR = 0.002  # of the extent
_SAME_PLACE_PX = 6.0
_SAME_PLACE = 0.012  # of the extent
_DEPTH = 0.3  # of the extent, for want of cameras
_PAIRS = 60_000
_TRIED = 3000
_SCALE_MISFIT = 0.5  # of the logarithm, between a hypothesis and a match's own keypoints
_TURN_MISFIT = np.radians(30.0)
_SEED = 1
_C128 = npt.NDArray[np.complex128]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A cloud from above. `places` (M,3): where the keypoints lie in the cloud's own frame."""

    features: sift.Features
    places: F64
    footprint: npt.NDArray[np.float32]  # (P,3) some of the cloud
    extent: float  # diagonal of its middle 90 %


def view(points: npt.NDArray[np.float32], grey: npt.NDArray[np.float32]) -> View:
    """What a camera above the cloud sees: `points` (N,3), `grey` (N,). Raises ValueError when
    there are too few points to draw."""
    if len(points) < 100:
        raise ValueError(f"{len(points)} points are too few for a picture from above")
    extent = float(np.linalg.norm(np.subtract(*np.percentile(points, [95, 5], axis=0))))
    centre, axes = _plane(points.astype(np.float64), extent)
    local = (points - centre) @ axes.T
    drawn = np.abs(local[:, 2] - np.median(local[:, 2])) < _ABOVE * extent
    local, shade = local[drawn], grey[drawn]
    grounded = _without_floaters(local, extent)
    local, shade = local[grounded], shade[grounded]
    low, high = np.percentile(local[:, :2], [0.5, 99.5], axis=0)
    pixel = max(
        float(np.sqrt(_CELL_POINTS * np.prod(high - low) / max(len(local), 1))),
        float((high - low).max()) / _MAX_SIDE,
    )
    image, height = _draw(local, shade, low, high, pixel)
    features = sift.extract(image, MAX_FEATURES, fine=True)
    column, row = features.place.real - 0.5, features.place.imag - 0.5
    up = map_coordinates(height, [row, column], order=1, mode="nearest")
    flat = np.stack([low[0] + (column + 0.5) * pixel, low[1] + (row + 0.5) * pixel, up], axis=1)
    step = max(1, len(points) // 5000)
    return View(features, flat @ axes + centre, points[::step], extent)


def register_views(
    source_number: int, source: View, target_number: int, target: View, ratio: float
) -> Edge:
    """Best Sim3 from `source` to `target` with its evidence, as `register.register`. The source is
    also tried as seen from below, as nothing says which side of a cloud is up. `ratio` is that of
    `register.register`."""
    best = Edge(source_number, target_number, 0, 0, 0.0, 0.0, None, method="raster")
    for features in (source.features, source.features.mirrored()):
        pairs = match(features.descriptors, target.features.descriptors, ratio + _LOOSER)
        alike = _similar(features, target.features, pairs)
        kept = pairs[alike]
        a, b = source.places[kept[:, 0]], target.places[kept[:, 1]]
        limit = _SAME_PLACE * target.extent
        sim3 = robust_sim3(a, b, limit)
        if sim3 is None:
            continue
        error = np.linalg.norm(sim3.apply(a) - b, axis=1)
        inlier = error < limit
        if inlier.sum() <= best.inliers:
            continue
        # What is found with the inliers' help sharpens the transform, but is no evidence.
        a, b, inliers = a[inlier], b[inlier], int(inlier.sum())
        spanned = max(hull_share(source.footprint, a), hull_share(target.footprint, b))
        sim3, a, b = _guided(features, source, target, sim3, a, b)
        apart = sim3.apply(a) - b
        depth, ground = _DEPTH * target.extent, sim3.apply(source.footprint)
        best = Edge(
            source_number,
            target_number,
            matches=len(pairs),
            inliers=inliers,
            hull_share=spanned,
            residual=float(np.sqrt(np.mean((apart**2).sum(axis=1)))) / target.extent,
            sim3=sim3,
            method="raster",
            far_error=far_error(b, apart, ground, depth) / target.extent,
        )
    return best


def _guided(
    features: sift.Features, source: View, target: View, sim3: Sim3, a: F64, b: F64
) -> tuple[Sim3, F64, F64]:
    """A Sim3 from all that looks alike near where the inliers `a`, `b` (M,3) put it, and these
    places; from the inliers alone where too little is found or few of them agree with it."""
    here = Marks(source.places, features.descriptors, np.ones(len(source.places)))
    there = Marks(target.places, target.features.descriptors, np.ones(len(target.places)))
    limit = _SAME_PLACE * target.extent
    better, near = refine(here, there, sim3, limit, _DEPTH * target.extent)
    kept = np.linalg.norm(better.apply(a) - b, axis=1) < limit
    if len(near) < len(a) or kept.mean() < KEPT:
        return sim3, a, b
    return better, source.places[near[:, 0]], target.places[near[:, 1]]


def _plane(points: F64, extent: float) -> tuple[F64, F64]:
    """Centre (3,) and axes (3,3), rows across, along and up, of the plane most points lie on."""
    rng = np.random.default_rng(_SEED)
    some = points[rng.integers(0, len(points), _PLANE_SAMPLE)]
    corners = some[rng.integers(0, len(some), (_PLANE_TRIALS, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-300)
    away = np.abs(some @ normals.T - (corners[:, 0] * normals).sum(axis=1))
    best = int((away < _ON_PLANE * extent).sum(axis=0).argmax())
    near = np.abs((points - corners[best, 0]) @ normals[best]) < 3 * _ON_PLANE * extent
    on_it = points[near]
    centre = on_it.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov((on_it - centre).T))
    rows = axes.T[::-1]
    rows[2] *= np.sign(np.linalg.det(rows))
    return centre, rows


def _without_floaters(local: F64, extent: float) -> npt.NDArray[np.bool_]:
    """Points near the median height of their surroundings, a sixtieth of the ground wide."""
    low, high = np.percentile(local[:, :2], [1, 99], axis=0)
    cell = np.clip((local[:, :2] - low) // ((high - low).max() / 60 + 1e-12), -1, 61).astype(int)
    key = cell[:, 0] * 64 + cell[:, 1]
    order = np.lexsort((local[:, 2], key))
    starts = np.flatnonzero(np.diff(key[order], prepend=key[order[0]] - 1))
    count = np.diff(starts, append=len(key))
    height = local[order, 2]
    quarter, middle, three = (height[starts + count * k // 4] for k in (1, 2, 3))
    allowed = _FLOATER_IQR * (three - quarter) + _FLOATER_FLOOR * extent
    kept = np.empty(len(local), np.bool_)
    kept[order] = np.abs(height - np.repeat(middle, count)) < np.repeat(allowed, count)
    return kept


def _draw(
    local: F64, shade: npt.NDArray[np.float32], low: F64, high: F64, pixel: float
) -> tuple[npt.NDArray[np.uint8], F64]:
    """Grey picture (H,W) with local contrast evened out, and heights (H,W)."""
    size = np.ceil((high - low) / pixel).astype(int) + 1
    at = np.floor((local[:, :2] - low) / pixel).astype(int)
    inside = ((at >= 0) & (at < size)).all(axis=1)
    index = at[inside, 1] * size[0] + at[inside, 0]
    cells, shape = int(size[0] * size[1]), (int(size[1]), int(size[0]))
    count = np.bincount(index, minlength=cells).reshape(shape)
    seen = (count > 0).astype(np.float64)
    many = np.maximum(count, 1)
    tone = np.bincount(index, shade[inside], cells).reshape(shape) / many
    height = np.bincount(index, local[inside, 2], cells).reshape(shape) / many
    tone, height = (_filled(values, seen) for values in (tone, height))
    broad = max(shape) / 24
    weight = np.maximum(gaussian_filter(seen, broad), 1e-3)
    mean = gaussian_filter(tone * seen, broad) / weight
    spread = np.sqrt(gaussian_filter((tone - mean) ** 2 * seen, broad) / weight) + 1e-6
    even = gaussian_filter((tone - mean) / spread, 0.7)
    even[gaussian_filter(seen, 3.0) < 0.3] = 0.0
    image = np.clip(128.0 + 48.0 * even, 0, 255).astype(np.uint8)
    return image, median_filter(height, 5)


def _filled(values: F64, seen: F64) -> F64:
    """Pixels without a point get the mean of their neighbours."""
    around = gaussian_filter(values * seen, 1.2) / np.maximum(gaussian_filter(seen, 1.2), 1e-6)
    filled: F64 = np.where(seen > 0, values, around)
    return filled


def _similar(
    source: sift.Features, target: sift.Features, pairs: npt.NDArray[np.intp]
) -> npt.NDArray[np.bool_]:
    """Mask of the pairs that the best similarity of the plane explains: z -> a z + b.

    Two matches make a hypothesis; only one that agrees with the sizes and directions of both
    keypoints is counted out over all matches.
    """
    chosen = np.zeros(len(pairs), np.bool_)
    if len(pairs) < 4:
        return chosen
    a, b = source.place[pairs[:, 0]], target.place[pairs[:, 1]]
    own = target.turn[pairs[:, 1]] / source.turn[pairs[:, 0]]
    rng = np.random.default_rng(_SEED)
    first, second = rng.integers(0, len(pairs), (2, _PAIRS))
    apart = a[second] - a[first]
    usable = np.abs(apart) > 2 * _SAME_PLACE_PX
    first, second, apart = first[usable], second[usable], apart[usable]
    factor = (b[second] - b[first]) / apart
    fits = np.abs(factor) > 1e-6
    for end in (first, second):
        misfit = np.log(np.where(fits, factor, 1.0) / own[end])
        fits &= (np.abs(misfit.real) < _SCALE_MISFIT) & (np.abs(misfit.imag) < _TURN_MISFIT)
    tried = np.flatnonzero(fits)[:_TRIED]
    best = 3
    for k in tried:
        error = np.abs(factor[k] * (a - a[first[k]]) + b[first[k]] - b)
        good = error < _SAME_PLACE_PX
        if good.sum() > best:
            best, chosen = int(good.sum()), good
    return chosen
