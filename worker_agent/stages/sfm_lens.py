"""The last adjustment of a model, and the lens that its frames tell.

A straight track over flat ground hardly tells distortion from none: distortion, focal length and
the bend of the track make up for each other, and a lens without distortion gets some, with a bent
track. So a lens gets a parameter more only where that explains the frames better than chance. A
lens with a parameter too few is as bad: what it cannot say goes into the focal length.

What is known beside the frames comes in by its own uncertainty: positions of the cameras as
observations of the adjustment, and a focal length that was given as a second measurement of it,
unless the two contradict each other.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from worker_agent.stages.sfm_adjust import (
    Adjustment,
    Positions,
    adjusted,
    focal_deviation,
    noise_px,
    residuals_px,
    scale_px,
)

__all__ = ["Fitted", "FocalPrior", "combined", "fitted", "worth_parameters"]

# Each has one parameter more than the one before.
LENSES = ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")
MIDDLE = 2  # parameters that a free principal point adds
MOST_FRAMES = 500  # five adjustments of more would take longer than they are worth
# Of the focal length: real clips have 0.001 to 0.003; a camera that only slides tells it from no
# height above the ground, and has 0.1 and more.
MOST_UNCERTAIN = 0.01
BLOCKS = 4  # of frames, each left out once
CONTRADICTS = 3.0  # deviations between what the frames tell and what was given


@dataclass(frozen=True, slots=True)
class FocalPrior:
    """A focal length that was given, in pixels of the frames."""

    focal_px: float
    deviation: float  # standard deviation, of the focal length


@dataclass(frozen=True, slots=True)
class Fitted:
    model: Any
    focal_uncertainty: float  # standard deviation of the focal length over itself
    given: (
        Literal["used", "contradicted"] | None
    )  # what became of the lens that was given; None: there was none
    positions: bool  # whether they had a say


def worth_parameters(
    simple_px: float, full_px: float, residuals: int, *, more: int = 1, known: float = 0.0
) -> bool:
    """Bayesian information criterion (Schwarz 1978): RMS errors without and with `more`
    parameters, over `residuals` independent numbers; `known`: by how much the fuller lens agrees
    better with what was known of it, in squared deviations."""
    gain = 2 * residuals * math.log(simple_px / full_px) + known
    return gain > more * math.log(residuals)


def combined(found: FocalPrior, given: FocalPrior) -> FocalPrior | None:
    """The mean of two measurements, weighted by their information; None where they contradict
    each other. In logarithms: deviations are relative."""
    apart = math.log(found.focal_px / given.focal_px)
    if not abs(apart) <= CONTRADICTS * math.hypot(found.deviation, given.deviation):
        return None
    own, other = found.deviation**-2, given.deviation**-2
    focal = given.focal_px * math.exp(apart * own / (own + other))
    return FocalPrior(focal, (own + other) ** -0.5)


def fitted(
    pc: Any,
    model: Any,
    *,
    given: FocalPrior | None,
    threads: int,
    locate: Callable[[Any], tuple[Any, Positions] | None] | None = None,
) -> Fitted:
    """The pycolmap `model` (`pc` is that module) adjusted with a robust loss (Cauchy, at the
    residuals' own scale), with the simplest lens of LENSES that explains its frames; a lens that
    was `given` loses no parameter. Frames that do not tell the focal length, and nothing else does,
    keep the model's lens.

    `locate`: a model to the same where its cameras' positions put it, and these."""
    plain = Adjustment(threads=threads)
    best = _explained(pc, adjusted(pc, model, plain), plain, given)
    how = replace(best.how, cauchy_px=scale_px(best.model))
    free = adjusted(pc, best.model, how)
    positions = False
    if locate is not None:
        free, how, positions = _with_positions(pc, free, how, locate)
    if given is None:
        uncertain = focal_deviation(pc, free, replace(how, cauchy_px=None))
        if not (uncertain if positions else _open(pc, best)) <= MOST_UNCERTAIN:
            return _held(pc, model, threads)
        return Fitted(free, uncertain, None, positions)
    focal = next(iter(free.cameras.values())).mean_focal_length()
    noise = focal_deviation(pc, free, how, noise_px(free))
    found = FocalPrior(focal, max(noise, _spread(pc, free, how)))
    both = combined(found, given)
    if both is None:
        return Fitted(free, found.deviation, "contradicted", positions)
    held = replace(how, lens="focal held")
    return Fitted(
        adjusted(pc, _with_focal(free, both.focal_px), held), both.deviation, "used", positions
    )


def _held(pc: Any, model: Any, threads: int) -> Fitted:
    how = Adjustment(threads=threads, lens="held")
    held = adjusted(pc, model, how)
    held = adjusted(pc, held, replace(how, cauchy_px=scale_px(held)))
    return Fitted(held, focal_deviation(pc, held, replace(how, lens="free")), None, False)


@dataclass(frozen=True, slots=True)
class _Fit:
    model: Any
    how: Adjustment
    parameters: int
    px: float
    against: float  # the given focal length, in squared deviations


def _open(pc: Any, fit: _Fit) -> float:
    """How uncertain the focal length of a fit is."""
    return focal_deviation(pc, fit.model, fit.how)


def _explained(pc: Any, own: Any, plain: Adjustment, given: FocalPrior | None) -> _Fit:
    """The fit with the simplest lens that explains the frames. One that leaves the focal length
    open is passed over once another does not."""

    def fit(model: Any, lens: str, how: Adjustment) -> _Fit:
        made = adjusted(pc, model, how)
        px = math.sqrt(max(1e-12, float((residuals_px(made) ** 2).mean())))
        against = 0.0
        if given is not None:
            focal = next(iter(made.cameras.values())).mean_focal_length()
            both = math.hypot(focal_deviation(pc, made, how, noise_px(made)), given.deviation)
            against = (math.log(focal / given.focal_px) / both) ** 2
        count = (LENSES.index(lens) if lens in LENSES else 0) + MIDDLE * how.middle
        return _Fit(made, how, count, px, against)

    lens = next(iter(own.cameras.values())).model.name
    if lens not in LENSES or len(own.cameras) != 1 or own.num_reg_images() > MOST_FRAMES:
        return fit(own, lens, plain)
    independent = max(2, 2 * own.num_points3D())

    def better(best: _Fit, other: _Fit) -> bool:
        worth = worth_parameters(
            best.px,
            other.px,
            independent,
            more=other.parameters - best.parameters,
            known=best.against - other.against,
        )
        return worth and (
            given is not None
            or _open(pc, other) <= MOST_UNCERTAIN
            or not _open(pc, best) <= MOST_UNCERTAIN
        )

    first = 0 if given is None else LENSES.index(lens)
    best = fit(_with_lens(pc, own, LENSES[first]), LENSES[first], plain)
    for name in LENSES[first + 1 :]:
        other = fit(_with_lens(pc, own, name), name, plain)
        best = other if better(best, other) else best
    name = LENSES[best.parameters]
    other = fit(best.model, name, replace(plain, middle=True))
    return other if better(best, other) else best


def _with_positions(
    pc: Any, free: Any, how: Adjustment, locate: Callable[[Any], tuple[Any, Positions] | None]
) -> tuple[Any, Adjustment, bool]:
    """Adjusted with the positions of its cameras. They weigh by how far they lie from the model's,
    so those that are far off, or bend it, can move it by no more than what it leaves open."""
    located = locate(free)
    if located is None:
        return free, how, False
    placed, positions = located
    bound = replace(how, positions=positions)
    return adjusted(pc, placed, bound), bound, True


def _spread(pc: Any, model: Any, how: Adjustment) -> float:
    """Standard deviation of the focal length over itself by the jackknife over blocks of successive
    frames (Quenouille 1956): what a rolling shutter or wind does to a stretch of the track is no
    noise of single observations, which is all that a covariance knows of. Two segments of one
    camera were seen 4 of its deviations apart. Infinite with too few frames."""
    posed = sorted((i for i in model.images.values() if i.has_pose), key=lambda image: image.name)
    if len(posed) < 2 * BLOCKS:
        return math.inf
    focals = []
    for block in range(BLOCKS):
        rest = copy.deepcopy(model)
        for image in posed[block * len(posed) // BLOCKS : (block + 1) * len(posed) // BLOCKS]:
            rest.deregister_frame(image.frame_id)
        camera = next(iter(adjusted(pc, rest, how).cameras.values()))
        focals.append(math.log(camera.mean_focal_length()))
    return math.sqrt((BLOCKS - 1) * statistics.pvariance(focals))


def _with_lens(pc: Any, model: Any, lens: str) -> Any:
    changed = copy.deepcopy(model)
    wanted = 3 + LENSES.index(lens)
    for camera in changed.cameras.values():
        params = [*(float(value) for value in camera.params), 0.0, 0.0][:wanted]
        camera.model = getattr(pc.CameraModelId, lens)
        camera.params = params
    return changed


def _with_focal(model: Any, focal_px: float) -> Any:
    changed = copy.deepcopy(model)
    for camera in changed.cameras.values():
        params = [float(value) for value in camera.params]
        ratio = focal_px / camera.mean_focal_length()
        for index in camera.focal_length_idxs():
            params[index] *= ratio
        camera.params = params
    return changed
