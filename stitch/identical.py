"""Keypoints that two reconstructions share because both hold the frame they lie in.

The same file gives the same keypoints, so a frame's contents and a keypoint's place in it name the
keypoint: no descriptor has to be compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pycolmap

from stitch.sidecar import Sidecar

MAX_KEYS = 20_000
"""Of one segment, 4 bytes each. Clips share their first or last frames: those go first."""

_SUBPIXELS = 16.0
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_U32 = npt.NDArray[np.uint32]


def keys_of(
    model: pycolmap.Reconstruction, points: list[Any], hashes: dict[int, int]
) -> tuple[npt.NDArray[np.uint8], _U32]:
    """How many keys each of `points` (of `model`) has (P,), at most 255, and all of these in the
    order of the points. `hashes`: of the contents of images by their number, in the order they
    were taken; 0 where unknown."""
    known = [number for number, value in hashes.items() if value]
    from_end = {number: min(k, len(known) - 1 - k) for k, number in enumerate(known)}
    seen = [
        (row, element.image_id, element.point2D_idx)
        for row, point in enumerate(points)
        for element in point.track.elements
        if element.image_id in from_end
    ]
    if not seen:
        return np.zeros(len(points), np.uint8), np.empty(0, np.uint32)
    seen.sort(key=lambda each: from_end[each[1]])
    kept = sorted(seen[:MAX_KEYS])
    rows = np.array([row for row, _, _ in kept])
    xy = np.array([model.images[image].points2D[index].xy for _, image, index in kept])
    frames = np.array([hashes[image] for _, image, _ in kept], np.uint64)
    first = np.searchsorted(rows, rows)
    few = np.arange(len(rows)) - first < 255
    counts = np.bincount(rows[few], minlength=len(points)).astype(np.uint8)
    return counts, _keys(frames[few], xy[few])


def identical(source: Sidecar, target: Sidecar) -> npt.NDArray[np.intp]:
    """Pairs (M,2) of points that were made from a common keypoint, each pair once."""
    here, there = (
        np.repeat(np.arange(len(side.points)), side.key_counts) for side in (source, target)
    )
    _, i, j = np.intersect1d(source.keys, target.keys, return_indices=True)
    if len(i) == 0:
        return np.empty((0, 2), np.intp)
    return np.unique(np.stack([here[i], there[j]], axis=1), axis=0)


def _keys(frames: npt.NDArray[np.uint64], xy: npt.NDArray[np.floating[Any]]) -> _U32:
    """One in four thousand million is another keypoint's, too."""
    at = np.round(xy * _SUBPIXELS).astype(np.uint64)
    with np.errstate(over="ignore"):
        mixed = (frames ^ (at[:, 0] << np.uint64(32)) ^ at[:, 1]) * _PRIME
        mixed ^= mixed >> np.uint64(29)
        mixed *= _PRIME
    return np.asarray((mixed >> np.uint64(32)).astype(np.uint32))
