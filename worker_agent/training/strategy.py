"""Where gaussians are added and removed: by default a budget over time, no gradient threshold.

Fixed thresholds on the screen gradient depend on resolution and contrast: murky footage never
reaches them, small images explode. Here the schedule says how many gaussians there may be and the
ones with the largest mean absolute screen gradient (AbsGS) are divided until that many exist.
`default.py` has the threshold of the field, which looks at the same gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from worker_agent.training.adam import Adam
from worker_agent.training.gaussians import Parameters
from worker_agent.training.projection import rotation_rows
from worker_agent.training.schedule import Schedule

OPACITY_MIN = 0.005
SPLIT_SHRINK = 1.6  # 3DGS
_SPLIT_SCALE = 0.005  # of the median view depth: larger gaussians are split, smaller ones cloned
_STALLED_REFINEMENTS = 3
_GROWN_LEAST = 0.1  # of what the budget allows; below it growth stalls


@dataclass(frozen=True, slots=True)
class Refinement:
    """What one refinement did."""

    added: int
    pruned: int
    total: int
    median_score: float  # of the mean absolute screen gradient over the gaussians seen


class Strategy(Protocol):
    """What the trainer asks of one: BudgetStrategy, default.DefaultStrategy, mcmc.McmcStrategy."""

    def observe(self, meta: dict[str, Any]) -> None:
        """Look at the view just back-propagated."""

    def penalty(self, parameters: Parameters) -> Tensor:
        """To be added to the loss."""

    def moved(self, step: int, parameters: Parameters, rate: float) -> None:
        """After Adam's step, taken with `rate` for the means."""

    def refine(self, step: int, adam: Adam) -> Refinement:
        """Remove and add gaussians."""

    def kept(self, rows: Tensor) -> None:
        """Of the gaussians only those at `rows` are left."""

    def state(self) -> dict[str, object]:
        """For a checkpoint."""

    def restore(self, state: dict[str, object]) -> None:
        """Take over what `state` returned."""


class GradientStrategy:
    """Collects screen gradients and divides gaussians; those that derive from it say which."""

    def __init__(
        self, schedule: Schedule, count: int, *, seed: int, warn: Callable[[str], None]
    ) -> None:
        self._schedule = schedule
        self._seed = seed
        self._warn = warn
        self._score = torch.zeros(count)
        self._seen = torch.zeros(count)
        self._stalled = 0
        self._half_sizes: dict[tuple[int, int], Tensor] = {}

    @torch.no_grad()
    def observe(self, meta: dict[str, Any]) -> None:
        """Add the absolute screen gradients of the view just back-propagated.

        They are in units of half an image, which makes them independent of the resolution.
        """
        gradient: Tensor = meta["means2d"].absgrad[0]
        size = meta["width"], meta["height"]
        if size not in self._half_sizes:  # once: a GPU is waited for at each such copy
            self._half_sizes[size] = gradient.new_tensor([size[0] / 2.0, size[1] / 2.0])
        visible = (meta["radii"][0] > 0).all(dim=-1)
        if self._score.device != gradient.device:
            self._score, self._seen = self._score.to(gradient), self._seen.to(gradient)
        self._score += (gradient * self._half_sizes[size]).norm(dim=-1) * visible
        self._seen += visible

    def penalty(self, parameters: Parameters) -> Tensor:
        """None."""
        return parameters["means"].new_zeros(())

    def moved(self, step: int, parameters: Parameters, rate: float) -> None:
        """Nothing."""

    def _mean_gradients(self) -> Tensor:
        """(N,) over the views that saw each gaussian; 0 where none did."""
        return self._score / self._seen.clamp_min(1.0)

    @staticmethod
    def _alive(parameters: Parameters) -> Tensor:
        """(N,) bool: neither transparent nor broken."""
        alive = torch.sigmoid(parameters["opacities"]) >= OPACITY_MIN
        alive &= torch.isfinite(parameters["means"]).all(dim=-1)
        return alive

    def _replace(
        self, step: int, adam: Adam, alive: Tensor, chosen: Tensor, *, split_above: float
    ) -> None:
        """Keep the gaussians that are alive, divide the chosen ones (indices), look anew."""
        replaced, children = self._divide(step, adam, chosen, split_above)
        alive[replaced] = False
        adam.replace(alive.nonzero()[:, 0], children)
        after = len(adam.parameters["means"])
        self._score, self._seen = self._score.new_zeros(after), self._score.new_zeros(after)

    def _divide(
        self, step: int, adam: Adam, chosen: Tensor, split_above: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(rows that their two children replace, the new gaussians).

        Gaussians larger than `split_above` are split into two smaller ones drawn from them; the
        others get a copy beside them. A copy and its parent get the opacity 1 - sqrt(1 - o), which
        together cover as much as the parent did (Rota Bulo et al. 2024), so that quality does not
        dip.
        """
        parameters = adam.parameters
        old = {name: value.data[chosen] for name, value in parameters.items()}
        scales = old["scales"].exp()
        large = scales.amax(dim=-1) > split_above
        small = ~large
        # Drawn on the CPU from the seed and the step alone: the same on every device, and a
        # resumed run needs no generator state.
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        noise = torch.randn(2, len(chosen), 3, generator=generator).to(scales)
        offsets = torch.stack([self._turned(old["quats"], scales * n) for n in noise])

        opacity = torch.sigmoid(old["opacities"])
        shared = torch.logit(1.0 - torch.sqrt(1.0 - opacity.clamp_max(0.999)), eps=1e-6)
        parameters["opacities"].data[chosen[small]] = shared[small]

        children = {name: torch.cat([v[large], v[large], v[small]]) for name, v in old.items()}
        count = int(large.sum())
        children["means"] = torch.cat(
            [
                old["means"][large] + offsets[0][large],
                old["means"][large] + offsets[1][large],
                old["means"][small] + offsets[0][small],
            ]
        )
        children["scales"][: 2 * count] -= math.log(SPLIT_SHRINK)
        children["opacities"][2 * count :] = shared[small]
        return chosen[large], children

    @staticmethod
    def _turned(quats: Tensor, vectors: Tensor) -> Tensor:
        """Vectors (N, 3) from the gaussians' own axes into the scene's."""
        x, y, z = vectors.unbind(-1)
        return torch.stack([a * x + b * y + c * z for a, b, c in rotation_rows(quats)], dim=-1)

    def _watch(self, step: int, stalls: bool, told: str) -> None:
        """Say so when hardly a gaussian is added though there may be more: training would silently
        stay blurred, which is how murky footage fails under fixed thresholds."""
        self._stalled = self._stalled + 1 if stalls else 0
        if self._stalled == _STALLED_REFINEMENTS:
            self._warn(
                f"densification stalled at step {step}: in {_STALLED_REFINEMENTS} refinements "
                f"hardly a gaussian {told}; the views may have no usable contrast"
            )

    def kept(self, rows: Tensor) -> None:
        """Forget the others."""
        rows = rows.to(self._score.device)
        self._score, self._seen = self._score[rows], self._seen[rows]

    def state(self) -> dict[str, object]:
        """For a checkpoint."""
        return {"score": self._score, "seen": self._seen, "stalled": self._stalled}

    def restore(self, state: dict[str, object]) -> None:
        """Take over what `state` returned."""
        score, seen, stalled = state["score"], state["seen"], state["stalled"]
        if not (
            isinstance(score, Tensor) and isinstance(seen, Tensor) and isinstance(stalled, int)
        ):
            raise ValueError("strategy state has an unexpected form")
        self._score, self._seen, self._stalled = score, seen, stalled


class BudgetStrategy(GradientStrategy):
    """Divides those with the largest gradients at the steps of the schedule, up to its budget."""

    @torch.no_grad()
    def refine(self, step: int, adam: Adam) -> Refinement:
        """Remove transparent gaussians, then divide the most needed ones up to the budget."""
        score, alive = self._mean_gradients(), self._alive(adam.parameters)
        total, survivors = int(alive.numel()), int(alive.sum())
        wanted = max(0, self._schedule.budget(step) - survivors)
        candidates = torch.where(alive & (self._seen > 0), score, score.new_zeros(()))
        number = min(wanted, int((candidates > 0).sum()))
        chosen = torch.topk(candidates, number).indices.sort().values
        self._replace(step, adam, alive, chosen, split_above=_SPLIT_SCALE)
        median = median_of_seen(score)
        self._watch(
            step,
            number < _GROWN_LEAST * wanted,
            f"was added, now {number} of {wanted} that were allowed "
            f"(median screen gradient {median:.2e})",
        )
        after = len(adam.parameters["means"])
        return Refinement(number, total - survivors, after, median)


def median_of_seen(score: Tensor) -> float:
    """Of (N,) mean gradients, of which those of gaussians that no view saw are 0."""
    seen = score[score > 0]
    return float(seen.median()) if seen.numel() else 0.0
