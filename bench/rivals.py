"""Registration of two clouds by other libraries, for bench/stitch.py: geometry, scale unknown."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from stitch.sim3 import Sim3

F32 = npt.NDArray[np.float32]
_SAMPLE = 40_000
_VOXEL = 0.035  # of clouds whose median distance from their middle is 1
_SCALES = np.exp(np.linspace(np.log(0.6), np.log(1.7), 11))


def open3d_pair(source: F32, target: F32) -> Sim3 | None:
    """FPFH, RANSAC with scale, then ICP with scale, as in its tutorial."""
    import open3d as o3d

    o3d.utility.set_verbosity_level(o3d.utility.VerbosityLevel.Error)  # it warns on stdout
    registration = o3d.pipelines.registration
    estimation = registration.TransformationEstimationPointToPoint(True)
    one, other, before, after = _alike(source, target)
    clouds, features = [], []
    for points in (one, other):
        whole = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points))
        thin = whole.voxel_down_sample(_VOXEL)
        thin.estimate_normals(o3d.geometry.KDTreeSearchParamHybrid(2 * _VOXEL, 30))
        near = o3d.geometry.KDTreeSearchParamHybrid(5 * _VOXEL, 100)
        features.append(registration.compute_fpfh_feature(thin, near))
        clouds.append(thin)
    found = registration.registration_ransac_based_on_feature_matching(
        clouds[0], clouds[1], features[0], features[1], True, 1.5 * _VOXEL, estimation, 3,
        [
            registration.CorrespondenceCheckerBasedOnEdgeLength(0.8),
            registration.CorrespondenceCheckerBasedOnDistance(1.5 * _VOXEL),
        ],
        registration.RANSACConvergenceCriteria(50_000, 0.999),
    )  # fmt: skip
    fine = registration.registration_icp(
        clouds[0], clouds[1], 1.5 * _VOXEL, found.transformation, estimation
    )
    return _placed(np.asarray(fine.transformation), 1.0, before, after)


def kiss_matcher_pair(source: F32, target: F32) -> Sim3 | None:
    """It knows no scale: the best of several, by its own count of inliers."""
    import kiss_matcher

    one, other, before, after = _alike(source, target)
    best, answer = -1, None
    for scale in _SCALES:
        matcher = kiss_matcher.KISSMatcher(kiss_matcher.KISSMatcherConfig(_VOXEL))
        found = matcher.estimate((one * scale).astype(np.float32), other.astype(np.float32))
        if matcher.get_num_final_inliers() > best:
            best = matcher.get_num_final_inliers()
            matrix = np.eye(4)
            matrix[:3, :3] = np.asarray(found.rotation, float)
            matrix[:3, 3] = np.asarray(found.translation, float).ravel()
            answer = _placed(matrix, float(scale), before, after)
    return answer


def _alike(source: F32, target: F32) -> tuple[Any, Any, Sim3, Sim3]:
    """Both thinned, about the origin and of one size; and what brought each there."""
    rng = np.random.default_rng(0)
    made = []
    for points in (source, target):
        some = points[rng.permutation(len(points))[:_SAMPLE]].astype(np.float64)
        centre = np.median(some, axis=0)
        size = float(np.median(np.linalg.norm(some - centre, axis=1)))
        there = Sim3(1.0 / size, np.eye(3), -centre / size)
        made.append((there.apply(some), there))
    return made[0][0], made[1][0], made[0][1], made[1][1]


def _placed(matrix: Any, scale: float, before: Sim3, after: Sim3) -> Sim3 | None:
    linear = matrix[:3, :3]
    own = float(np.cbrt(np.linalg.det(linear)))
    if not own > 0.0:
        return None
    u, _, vt = np.linalg.svd(linear / own)
    middle = Sim3(own * scale, u @ vt, matrix[:3, 3])
    return after.inverse() @ middle @ before
