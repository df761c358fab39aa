"""The last adjustment of a model, and the lens that the frames tell.

A straight track over flat ground hardly tells distortion from none: distortion, focal length and
the bend of the track make up for each other, and a lens without distortion gets some, with a bent
track. So a lens that was guessed gets a parameter more only where that explains the frames better
than chance.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["adjusted", "fitted", "focal_uncertainty", "residuals_px", "worth_a_parameter"]

# Each has one parameter more than the one before.
LENSES = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
MOST_FRAMES = 500  # three adjustments of more would take longer than they are worth
TOLERANCE = 1e-7  # of the cost, where an adjustment ends
ITERATIONS = 100
LEAST_SCALE_PX = 0.02
# Of the focal length: real clips have 0.001 to 0.003; a camera that only slides tells it from no
# height above the ground, and has 0.1 and more.
MOST_UNCERTAIN = 0.01

F64 = npt.NDArray[np.float64]


def worth_a_parameter(simple_px: float, full_px: float, residuals: int) -> bool:
    """Bayesian information criterion (Schwarz 1978): RMS errors without and with one parameter
    more, over `residuals` independent numbers."""
    gain = 2 * residuals * math.log(simple_px / full_px)
    return gain > math.log(residuals)


def fitted(pc: Any, model: Any, *, guessed: bool, threads: int) -> Any:
    """The pycolmap `model` (`pc` is that module) adjusted with a robust loss (Cauchy, at the
    residuals' own scale): with the simplest lens of LENSES that explains its frames when it was
    `guessed`, else with its own. Frames that do not tell the focal length keep the model's lens."""
    own = adjusted(pc, model, threads)
    if not focal_uncertainty(pc, own) <= MOST_UNCERTAIN:
        held = adjusted(pc, model, threads, hold_lens=True)
        scale = _scale_px(residuals_px(held))
        return adjusted(pc, held, threads, scale_px=scale, hold_lens=True)
    lens = next(iter(model.cameras.values())).model.name
    small = model.num_reg_images() <= MOST_FRAMES
    if guessed and small and len(model.cameras) == 1 and lens in LENSES:
        own = _simplest(pc, own, threads)
    return adjusted(pc, own, threads, scale_px=_scale_px(residuals_px(own)))


def focal_uncertainty(pc: Any, model: Any) -> float:
    """Standard deviation of the focal length over itself, by the adjustment's covariance at the
    residuals found; infinite where it has none. Of the first camera."""
    config = pc.BundleAdjustmentConfig()
    for image in model.images.values():
        if image.has_pose:
            config.add_image(image.image_id)
    config.fix_gauge(pc.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    options = pc.BundleAdjustmentOptions()
    options.print_summary = False
    adjuster = pc.create_default_ceres_bundle_adjuster(options, config, model)
    covariance = pc.estimate_ba_covariance(pc.BACovarianceOptions(), model, adjuster)
    camera = next(iter(model.cameras.values()))
    found = covariance and covariance.get_other_params_cov(camera.params)
    residuals = residuals_px(model)
    if found is None or not len(residuals) or not found[0][0] > 0:
        return math.inf
    noise = math.sqrt(float((residuals**2).mean()))
    return noise * math.sqrt(float(found[0][0])) / float(camera.mean_focal_length())


def _simplest(pc: Any, model: Any, threads: int) -> Any:
    # Observations of one point share its patch and its place: each point counts as one.
    independent = max(2, 2 * model.num_points3D())
    best, best_px = None, 0.0
    for lens in LENSES:
        fit = adjusted(pc, _with_lens(pc, model, lens), threads)
        px = math.sqrt(max(1e-12, float((residuals_px(fit) ** 2).mean())))
        if best is None or (
            worth_a_parameter(best_px, px, independent)
            and focal_uncertainty(pc, fit) <= MOST_UNCERTAIN
        ):
            best, best_px = fit, px
    return best


def adjusted(
    pc: Any, model: Any, threads: int, *, scale_px: float | None = None, hold_lens: bool = False
) -> Any:
    """A copy, bundle adjusted; with a scale, by the Cauchy loss of it."""
    options = pc.BundleAdjustmentOptions()
    options.print_summary = False
    options.refine_focal_length = options.refine_extra_params = not hold_lens
    solver = options.ceres.solver_options
    solver.num_threads = threads
    solver.function_tolerance = TOLERANCE
    solver.max_num_iterations = ITERATIONS
    if scale_px is not None:
        options.ceres.loss_function_type = pc.LossFunctionType.CAUCHY
        options.ceres.loss_function_scale = scale_px
    result = copy.deepcopy(model)
    pc.bundle_adjustment(result, options)
    result.update_point_3d_errors()
    return result


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


def _scale_px(residuals: F64) -> float:
    """Robust standard deviation of one component."""
    if not len(residuals):
        return LEAST_SCALE_PX
    return max(LEAST_SCALE_PX, 1.4826 * float(np.median(np.abs(residuals))))


def _with_lens(pc: Any, model: Any, lens: str) -> Any:
    changed = copy.deepcopy(model)
    wanted = 3 + LENSES.index(lens)
    for camera in changed.cameras.values():
        params = [*(float(value) for value in camera.params), 0.0, 0.0][:wanted]
        camera.model = getattr(pc.CameraModelId, lens)
        camera.params = params
    return changed
