"""Registration of two reconstructions that hold the same frames: consecutive clips of a track."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from stitch.register import Check, Edge
from stitch.sidecar import Sidecar
from stitch.sim3 import F64, Sim3

MIN_FRAMES = 3
_MIN_BASELINE_DEPTHS = 0.1  # deviation of the shared cameras about their middle
_OUTLIER = 3.0  # medians: a frame that one of the two placed wrongly
_FLOOR_DEG = 0.3


def register_frames(points: Edge, source: Sidecar, target: Sidecar) -> Edge | None:
    """Sim3 from the poses of common frames; None when there are too few, or they stood still.

    The rotation is the mean of the cameras' relative rotations: of a straight track the centres
    alone leave the roll open. Scale and translation come from the centres. `points` is what the
    pair's descriptors say (`register.register`); how far both differ is kept as `check`.
    """
    here, there = _common(source, target)
    if len(here) < MIN_FRAMES:
        return None
    relative = _to_world(target, there) * _to_world(source, here).inv()
    mean = _mean(relative)
    away = np.degrees((mean.inv() * relative).magnitude())
    fine = away <= max(_OUTLIER * float(np.median(away)), _FLOOR_DEG)
    if fine.sum() < MIN_FRAMES:
        return None
    mean = _mean(relative[fine])
    a, b = source.centres()[here[fine]], target.centres()[there[fine]]
    turned = mean.apply(a - a.mean(axis=0))
    apart = b - b.mean(axis=0)
    if np.sqrt((apart**2).sum(axis=1).mean()) < _MIN_BASELINE_DEPTHS * target.median_depth:
        return None
    scale = float((turned * apart).sum() / (turned**2).sum())
    if not 0.0 < scale < np.inf:
        return None
    rotation = mean.as_matrix()
    sim3 = Sim3(scale, rotation, b.mean(axis=0) - scale * rotation @ a.mean(axis=0))
    error = np.linalg.norm(sim3.apply(a) - b, axis=1)
    return dataclasses.replace(
        points,
        method="frames",
        sim3=sim3,
        frames=int(fine.sum()),
        residual=float(np.sqrt(np.mean(error**2))) / target.median_depth,
        check=_check(sim3, points, target, b),
    )


def _common(source: Sidecar, target: Sidecar) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows of the keyframes with the same contents."""
    _, here, there = np.intersect1d(
        source.keyframe_hashes, target.keyframe_hashes, return_indices=True
    )
    known = source.keyframe_hashes[here] != 0
    return here[known], there[known]


def _to_world(sidecar: Sidecar, rows: npt.NDArray[np.intp]) -> Rotation:
    return Rotation.from_quat(np.roll(sidecar.rotations[rows], -1, axis=1)).inv()


def _mean(rotations: Rotation) -> Rotation:
    """The chordal mean."""
    u, _, vt = np.linalg.svd(rotations.as_matrix().sum(axis=0))
    return Rotation.from_matrix(u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt)


def _check(sim3: Sim3, points: Edge, target: Sidecar, centres: F64) -> Check | None:
    """How far the points' own answer is off; the place compared is the ground below the shared
    cameras. None when the points have no answer."""
    if points.sim3 is None:
        return None
    nearest = np.argsort(np.linalg.norm(target.points - centres.mean(axis=0), axis=1))[:50]
    ground = np.median(target.points[nearest], axis=0)[None]
    back = sim3.inverse().apply(ground)
    _, extent = target.extent()
    return Check(
        angle_deg=sim3.angle_to(points.sim3),
        scale=abs(float(np.log(points.sim3.scale / sim3.scale))),
        offset=float(np.linalg.norm(points.sim3.apply(back) - ground)) / extent,
    )
