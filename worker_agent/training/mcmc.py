"""Gaussians as samples of the scene: the dead ones go to where there is much, some wander about.

3D Gaussian Splatting as Markov Chain Monte Carlo (Kheradmand et al. 2024). Nothing here looks at a
gradient. A gaussian that became transparent is put where another one lies, drawn by opacity, and
both together then look as the one did; growth towards the schedule's budget is the same without the
dead one. A term in the loss keeps opacities and sizes small, so that what is not needed dies, and
noise on the centres of nearly transparent gaussians makes them look around.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from worker_agent.training.adam import Adam
from worker_agent.training.gaussians import Parameters
from worker_agent.training.projection import rotation_rows
from worker_agent.training.schedule import Schedule
from worker_agent.training.strategy import OPACITY_MIN, Refinement

_NOISE = 5e5  # of the rate of the means, as there; times the gaussian's covariance
_WANDERS = 0.005  # opacity at which the noise is half of its most
_WANDERS_SLOPE = 100.0
_OPACITY_WEIGHT = 0.01  # in the loss, of the mean opacity
_SCALE_WEIGHT = 0.01  # and of the mean standard deviation
_MOST_COPIES = 51  # of one gaussian at a time, as in gsplat


class McmcStrategy:
    """Refines by opacity at the steps of the schedule; draws from the seed and the step alone."""

    def __init__(self, schedule: Schedule, *, seed: int) -> None:
        self._schedule = schedule
        self._seed = seed

    def observe(self, meta: dict[str, Any]) -> None:
        """Nothing of a view is needed."""

    def penalty(self, parameters: Parameters) -> Tensor:
        """A scalar to be added to the loss."""
        opacity = torch.sigmoid(parameters["opacities"]).mean()
        scale = torch.exp(parameters["scales"]).mean()
        return _OPACITY_WEIGHT * opacity + _SCALE_WEIGHT * scale

    @torch.no_grad()
    def moved(self, step: int, parameters: Parameters, rate: float) -> None:
        """Add noise to the centres after Adam's step; `rate` is that of the means."""
        means = parameters["means"].data
        noise = torch.randn(
            means.shape, generator=self._generator(step, 1, means), device=means.device
        )
        opacity = torch.sigmoid(parameters["opacities"].data)
        share = torch.sigmoid(_WANDERS_SLOPE * (_WANDERS - opacity))
        # Covariance times noise: into the gaussian's own axes, by its variances, and back.
        rows = rotation_rows(parameters["quats"].data)
        variance = torch.exp(2.0 * parameters["scales"].data)
        own = [variance[:, a] * sum(rows[k][a] * noise[:, k] for k in range(3)) for a in range(3)]
        turned = [sum(rows[k][a] * own[a] for a in range(3)) for k in range(3)]
        means += (_NOISE * rate * share)[:, None] * torch.stack(turned, dim=-1)  # type: ignore[arg-type]

    @torch.no_grad()
    def refine(self, step: int, adam: Adam) -> Refinement:
        """Dead gaussians are replaced, and more are added up to the budget."""
        parameters = adam.parameters
        opacity = torch.sigmoid(parameters["opacities"].data)
        alive = (opacity > OPACITY_MIN) & torch.isfinite(parameters["means"].data).all(dim=-1)
        total, survivors = len(alive), alive.nonzero()[:, 0]
        wanted = max(0, self._schedule.budget(step) - len(survivors)) if len(survivors) else 0
        drawn = survivors[self._drawn(step, opacity[survivors], wanted)]
        chosen, copies = torch.unique(drawn, return_counts=True)
        copies = copies.clamp_max(_MOST_COPIES - 1)
        children = {n: value.data[chosen] for n, value in parameters.items()}
        shared, factor = divided(opacity[chosen], copies + 1)
        shared = shared.clamp(OPACITY_MIN, 1.0 - torch.finfo(torch.float32).eps)
        children["opacities"] = torch.logit(shared)
        children["scales"] = children["scales"] + torch.log(factor)[:, None]
        every = torch.repeat_interleave(torch.arange(len(chosen), device=drawn.device), copies + 1)
        alive[chosen] = False  # the parent itself is one of its children, with moments of none
        adam.replace(alive.nonzero()[:, 0], {n: value[every] for n, value in children.items()})
        after = len(adam.parameters["means"])
        return Refinement(int(copies.sum()), total - len(survivors), after, 0.0)

    def _drawn(self, step: int, weights: Tensor, number: int) -> Tensor:
        """`number` indices into weights (M,), each as likely as its weight. Through the sums of
        the weights, because torch.multinomial ends at 2^24 of them."""
        sums = torch.cumsum(weights.double(), dim=0)
        generator = self._generator(step, 0, sums)
        at = torch.rand(number, generator=generator, device=sums.device, dtype=torch.float64)
        if number == 0:
            return at.long()
        return torch.searchsorted(sums, at * sums[-1], right=True).clamp_max(len(sums) - 1)

    def _generator(self, step: int, purpose: int, like: Tensor) -> torch.Generator:
        seed = (self._seed * 1_000_003 + step) * 2 + purpose
        return torch.Generator(like.device).manual_seed(seed)

    def kept(self, rows: Tensor) -> None:
        """Nothing is known of single ones."""

    def state(self) -> dict[str, object]:
        """For a checkpoint: there is none."""
        return {}

    def restore(self, state: dict[str, object]) -> None:
        """Take over what `state` returned."""


def divided(opacity: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
    """(opacity, factor of the scales), each (M,) float32, of `parts` (M,) equal gaussians in one
    place that together look like one of `opacity` (M,): equation 9 there.

    Its double sum over binomials is one sum, since those of a column add up to the next one. The
    terms alternate and are large, so it is done in float64; gsplat does it in float32.
    """
    whole, count = opacity.double(), parts.double()
    part = 1.0 - (1.0 - whole) ** (1.0 / count)
    total, term = torch.zeros_like(part), torch.ones_like(part)
    for k in range(1, int(parts.max()) + 1 if len(parts) else 1):
        # binomial(count, k) part^k, by what differs from the last one; 0 from count + 1 on
        term = term * part * (count - k + 1).clamp_min(0.0) / k
        total += (-1.0) ** (k - 1) / math.sqrt(k) * term
    return part.float(), (whole / total.clamp_min(1e-12)).float()
