"""Bundle adjustment of an accepted model: with what is free, what is held and what was measured.

pycolmap weighs every observation alike, so positions are given to it in units of the noise that an
observation has.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "Adjustment",
    "Positions",
    "adjusted",
    "focal_deviation",
    "noise_px",
    "residuals_px",
    "scale_px",
]

TOLERANCE = 1e-7  # of the cost, where an adjustment ends
ITERATIONS = 100
LEAST_SCALE_PX = 0.02
ALIGNED = 3.0  # deviations within which a position belongs to those that the model is put among

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Positions:
    """Where cameras were measured to be, in the frame that their model lies in."""

    at: Mapping[str, F64]  # image name -> (3,)
    deviation: F64  # (3,) standard deviation of each component
    noise_px: float  # of an observation: what a position's deviation weighs against


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    threads: int
    cauchy_px: float | None = None  # scale of the Cauchy loss; None: least squares
    lens: Literal["free", "focal held", "held"] = "free"
    middle: bool = False  # whether the principal point is free, too
    positions: Positions | None = None


def adjusted(pc: Any, model: Any, how: Adjustment) -> Any:
    """A copy of the pycolmap `model` (`pc` is that module), bundle adjusted."""
    result = copy.deepcopy(model)
    if how.positions is None:
        pc.bundle_adjustment(result, _options(pc, how))
    else:
        _adjuster(pc, result, how).solve()
    result.update_point_3d_errors()
    return result


def focal_deviation(pc: Any, model: Any, how: Adjustment, noise: float | None = None) -> float:
    """Standard deviation of the focal length over itself, by the adjustment's covariance, for
    observations with a `noise` in pixels (by default their RMS residual); infinite where it has
    none. Of the first camera."""
    adjuster = _adjuster(pc, model, how)
    covariance = pc.estimate_ba_covariance(pc.BACovarianceOptions(), model, adjuster)
    camera = next(iter(model.cameras.values()))
    found = covariance and covariance.get_other_params_cov(camera.params)
    residuals = residuals_px(model)
    if found is None or not len(residuals) or not found[0][0] > 0:
        return math.inf
    if noise is None:
        noise = math.sqrt(float((residuals**2).mean()))
    return noise * math.sqrt(float(found[0][0])) / float(camera.mean_focal_length())


def residuals_px(model: Any) -> F64:
    """(N, 2) reprojection errors of all observations, those behind a camera left out."""
    parts = [np.zeros((0, 2))]
    for image in model.images.values():
        seen = image.get_observation_points2D() if image.has_pose else []
        if not seen:
            continue
        world = np.array([model.points3D[point.point3D_id].xyz for point in seen])
        pose = image.cam_from_world().matrix()
        projected = image.camera.img_from_cam(world @ pose[:, :3].T + pose[:, 3])
        apart = np.asarray(projected) - np.array([point.xy for point in seen])
        parts.append(apart[np.isfinite(apart).all(axis=1)])
    return np.concatenate(parts)


def scale_px(model: Any) -> float:
    """Robust standard deviation of one component of the residuals."""
    residuals = residuals_px(model)
    if not len(residuals):
        return LEAST_SCALE_PX
    return max(LEAST_SCALE_PX, 1.4826 * float(np.median(np.abs(residuals))))


def noise_px(model: Any) -> float:
    """Of an observation, if observations of one point are no independent numbers: they share its
    patch and its place, so each point counts as one."""
    points = max(1, model.num_points3D())
    return scale_px(model) * math.sqrt(max(1.0, model.compute_num_observations() / points))


def _options(pc: Any, how: Adjustment) -> Any:
    options = pc.BundleAdjustmentOptions()
    options.print_summary = False
    options.refine_focal_length = how.lens == "free"
    options.refine_extra_params = how.lens != "held"
    options.refine_principal_point = how.middle
    solver = options.ceres.solver_options
    solver.num_threads = how.threads
    solver.function_tolerance = TOLERANCE
    solver.max_num_iterations = ITERATIONS
    if how.cauchy_px is not None:
        options.ceres.loss_function_type = pc.LossFunctionType.CAUCHY
        options.ceres.loss_function_scale = how.cauchy_px
    return options


def _adjuster(pc: Any, model: Any, how: Adjustment) -> Any:
    config = pc.BundleAdjustmentConfig()
    posed = [image for image in model.images.values() if image.has_pose]
    for image in posed:
        config.add_image(image.image_id)
    if how.positions is None:
        config.fix_gauge(pc.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
        return pc.create_default_ceres_bundle_adjuster(_options(pc, how), config, model)
    covariance = np.diag((how.positions.deviation / how.positions.noise_px) ** 2)
    priors = []
    for image in posed:
        if image.name in how.positions.at:
            prior = pc.PosePrior()
            prior.corr_data_id = image.data_id
            prior.position = how.positions.at[image.name]
            prior.position_covariance = covariance
            prior.coordinate_system = pc.PosePriorCoordinateSystem.CARTESIAN
            priors.append(prior)
    options = pc.PosePriorBundleAdjustmentOptions()
    options.alignment_ransac.random_seed = 0
    # By default from the covariances, which are in other units here.
    options.alignment_ransac.max_error = ALIGNED * float(np.linalg.norm(how.positions.deviation))
    return pc.create_pose_prior_ceres_bundle_adjuster(
        _options(pc, how), options, config, priors, model
    )
