"""A gain and an offset per colour channel for every view: cameras expose and balance as they go.

What one view shows brighter than its neighbours would otherwise become a fog in front of it. The
mean over the training views stays at no change, so that the gaussians keep the colours of the
footage; a held-out view takes the mean of its neighbours in time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worker_agent.training.adam import Adam

RATE = 1e-3  # of Adam; three times as fast followed single views' content in trials
_LAST_SHARE = 0.1  # the rate falls to this share of its start


class Exposures:
    """Of `views` views, of which those of `train` are learned."""

    def __init__(self, views: int, train: Sequence[int], device: torch.device) -> None:
        self._train = torch.tensor(train, device=device)
        values = torch.nn.Parameter(torch.zeros(views, 6, device=device))
        self._adam = Adam({"exposure": values})
        # (V, 2): the training views before and after each view
        ordered = sorted(train)
        before = [max((t for t in ordered if t <= v), default=ordered[0]) for v in range(views)]
        after = [min((t for t in ordered if t >= v), default=ordered[-1]) for v in range(views)]
        self._around = torch.tensor([before, after], device=device).T

    def apply(self, image: Tensor, view: int) -> Tensor:
        """(H, W, 3) as this view's camera exposes it."""
        values = self._adam.parameters["exposure"]
        centred = values - values[self._train].mean(dim=0)
        mine = centred[self._around[view]].mean(dim=0)
        return image * torch.exp(mine[:3]) + mine[3:]

    def step(self, share: float) -> None:
        """One update from the gradients that are there; `share` of the training is done."""
        self._adam.step({"exposure": RATE * _LAST_SHARE**share})

    def state(self) -> dict[str, object]:
        """For a checkpoint."""
        return {"values": self._adam.parameters["exposure"].data, "adam": self._adam.state()}

    def restore(self, state: dict[str, object]) -> None:
        """Take over what `state` returned."""
        values, adam = state["values"], state["adam"]
        if not isinstance(values, Tensor) or not isinstance(adam, dict):
            raise ValueError("exposure state has an unexpected form")
        device = self._around.device
        self._adam.parameters["exposure"] = torch.nn.Parameter(values.to(device))
        self._adam.restore(adam)
