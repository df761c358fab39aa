"""What the field does unless told otherwise: divide where a gradient is above a threshold.

3D Gaussian Splatting (Kerbl et al. 2023) as gsplat's DefaultStrategy has it, with the absolute
gradients of AbsGS and the threshold that goes with them. Of ours are the cap, which is never
passed, an alarm where nothing is above the threshold, and the schedule, which follows the plan's
steps. Opacities are reset, which gsplat 1.5.3 means to do and never does (`step % reset_every == 0
& step > 0` is always false): what covers the view of others must show that it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from worker_agent.training.adam import Adam
from worker_agent.training.schedule import Schedule
from worker_agent.training.strategy import (
    OPACITY_MIN,
    SPLIT_SHRINK,
    GradientStrategy,
    Refinement,
    median_of_seen,
)

GROW_ABOVE = 8e-4  # gsplat's for absolute gradients; 2e-4 is that of signed ones
_SPLIT_SCALE = 0.01  # of the scene's extent: larger gaussians are split, smaller ones copied
_PRUNE_SCALE = 0.1  # of the scene's extent: larger ones are removed once opacities were reset
_RESET_OPACITY = 2.0 * OPACITY_MIN
_GROWN_LEAST = 0.001  # of the gaussians; with fewer above the threshold growth stalls


def scene_extent(viewmats: Tensor) -> float:
    """The farthest camera from their mean and a tenth, as gsplat's simple_trainer measures a scene.

    viewmats (V, 4, 4) world to camera; in their unit.
    """
    centres = -torch.einsum("vji,vj->vi", viewmats[:, :3, :3], viewmats[:, :3, 3])
    return 1.1 * float((centres - centres.mean(dim=0)).norm(dim=-1).max())


class DefaultStrategy(GradientStrategy):
    """Divides those above the threshold and resets opacities at the steps of the schedule."""

    def __init__(
        self,
        schedule: Schedule,
        count: int,
        *,
        extent: float,
        seed: int,
        warn: Callable[[str], None],
    ) -> None:
        super().__init__(schedule, count, seed=seed, warn=warn)
        self._extent = extent

    @torch.no_grad()
    def refine(self, step: int, adam: Adam) -> Refinement:
        """Remove transparent and oversized gaussians, divide those above the threshold."""
        score, alive = self._mean_gradients(), self._alive(adam.parameters)
        total, above = len(alive), alive & (score > GROW_ABOVE)
        oversized, hopeless = self._oversized(step, adam)
        alive &= ~hopeless
        rest = int((alive & ~oversized).sum())
        room = self._schedule.budget(step) - rest
        # Halves of an oversized gaussian are no longer so: it stays by being divided.
        rows = (above & alive).nonzero()[:, 0]
        rows = rows[torch.argsort(score[rows], descending=True, stable=True)]
        taken = torch.cumsum(1 + oversized[rows].long(), dim=0) <= room
        chosen = rows[taken].sort().values
        divided = torch.zeros_like(alive)
        divided[chosen] = True
        alive &= divided | ~oversized
        survivors = int(alive.sum())
        self._replace(step, adam, alive, chosen, split_above=_SPLIT_SCALE * self._extent)
        if self._schedule.resets_at(step):
            opacities = adam.parameters["opacities"].data
            most = math.log(_RESET_OPACITY / (1.0 - _RESET_OPACITY))
            adam.put("opacities", opacities.clamp_max(most))
        median = median_of_seen(score)
        self._watch(
            step,
            room > 0 and len(rows) < _GROWN_LEAST * total,
            f"had a screen gradient above {GROW_ABOVE:g}, now {len(rows)} of {total} "
            f"(median {median:.2e}; train.strategy budget has no such threshold)",
        )
        after = len(adam.parameters["means"])
        return Refinement(len(chosen), total - survivors, after, median)

    def _oversized(self, step: int, adam: Adam) -> tuple[Tensor, Tensor]:
        """(N,) bool each: larger than a gaussian may be, and halves of it would be so too. None is
        before the first reset: gaussians begin as large as SfM's points are sparse."""
        sizes = adam.parameters["scales"].exp().amax(dim=-1)
        most = _PRUNE_SCALE * self._extent if step > self._schedule.reset_every else math.inf
        return sizes > most, sizes > SPLIT_SHRINK * most
