"""Registration of two reconstructions that hold the same frames: consecutive clips of a track."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from stitch.identical import identical
from stitch.register import LOOSE_DEPTHS, Check, Edge, robust_sim3
from stitch.sidecar import Sidecar
from stitch.sim3 import F64, Sim3

MIN_FRAMES = 3
_MIN_BASELINE_DEPTHS = 0.03  # deviation of the shared cameras about their middle
_OUTLIER = 3.0  # medians: a frame that one of the two placed wrongly
_FLOOR_DEG = 0.3
_MIN_IDENTICAL = 30
_SAME_PLACE = 0.03
"""Of its distance from the common cameras, by which a point may differ: in a view ahead the far
ones are the least certain. Of two sound halves of a reef 92 % stay within, of two bent 44 %."""


def register_frames(points: Edge, source: Sidecar, target: Sidecar) -> Edge | None:
    """Sim3 from the poses of common frames; None when there are too few, or they stood still.

    The rotation is the mean of the cameras' relative rotations: of a straight track the centres
    alone leave the roll open. Scale and translation come from the centres. How far this differs
    from what the ground says is kept as `check`: from points made of the very same keypoints of
    the common frames, and where the sidecars do not know these (scenes), from what the pair's
    descriptors say: `points`, of `register.register`.
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
        _by_keypoints(points, source, target, sim3, b) or _by_descriptors(points, sim3, target, b),
        method="frames",
        sim3=sim3,
        frames=int(fine.sum()),
        residual=float(np.sqrt(np.mean(error**2))) / target.median_depth,
    )


def _by_keypoints(
    points: Edge, source: Sidecar, target: Sidecar, sim3: Sim3, centres: F64
) -> Edge | None:
    """`points` with identical keypoints as its matches, and with the check that these make."""
    same = identical(source, target)
    if len(same) < _MIN_IDENTICAL:
        return None
    a = source.points[same[:, 0]].astype(np.float64)
    b = target.points[same[:, 1]].astype(np.float64)
    ground = robust_sim3(a, b, _SAME_PLACE * target.median_depth)
    if ground is None:
        return None
    far = np.linalg.norm(b - centres.mean(axis=0), axis=1)
    error = np.linalg.norm(ground.apply(a) - b, axis=1) / far
    inliers = int((error < _SAME_PLACE).sum())
    check = _difference(sim3, ground, target, centres)
    return dataclasses.replace(
        points,
        matches=len(same),
        inliers=inliers,
        loose=int((error < LOOSE_DEPTHS).sum()),
        check=dataclasses.replace(check, share=inliers / len(same), identical=len(same)),
    )


def _by_descriptors(points: Edge, sim3: Sim3, target: Sidecar, centres: F64) -> Edge:
    if points.sim3 is None:
        return points
    check = _difference(sim3, points.sim3, target, centres)
    return dataclasses.replace(points, check=check)


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


def _difference(sim3: Sim3, ground: Sim3, target: Sidecar, centres: F64) -> Check:
    """How far the ground's own answer is off; the place compared is that below the cameras."""
    nearest = np.argsort(np.linalg.norm(target.points - centres.mean(axis=0), axis=1))[:50]
    place = np.median(target.points[nearest], axis=0)[None]
    back = sim3.inverse().apply(place)
    _, extent = target.extent()
    return Check(
        angle_deg=sim3.angle_to(ground),
        scale=abs(float(np.log(ground.scale / sim3.scale))),
        offset=float(np.linalg.norm(ground.apply(back) - place)) / extent,
    )
