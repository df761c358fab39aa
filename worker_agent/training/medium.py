"""Water between the camera and the scene: what it takes away with distance, and what it adds.

A gaussian of colour J at the depth z is seen as J exp(-a z) + B (1 - exp(-b z)), per channel, and
open water as B (Akkaynak and Treibitz 2018). The medium is applied to each gaussian before
blending, which needs no depth picture and is exact for translucent ones. Without it the same
gaussians show the scene as in air.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker_agent.training.adam import Adam

RATE = 1e-2
_START = -3.0  # softplus of it is 0.05 a median depth: nearly clear water
_LAST_SHARE = 0.1  # the rate falls to this share of its start
_LIGHT = 0.3  # quantile of the footage's colours that open water starts from


class Medium:
    """Attenuation a and backscatter b (3,), per median view depth, and the colour B (3,)."""

    def __init__(self, images: Tensor, device: torch.device) -> None:
        """`images` (V, H, W, 3) uint8 of the footage."""
        sample = images.reshape(-1, 3)[:: max(1, images[..., 0].numel() // 10_000)]
        light = torch.quantile(sample.to(torch.float32) / 255.0, _LIGHT, dim=0)
        values = torch.stack(
            [
                torch.full((3,), _START),
                torch.full((3,), _START),
                torch.logit(light.clamp(0.02, 0.98)),
            ]
        )
        self._adam = Adam({"medium": torch.nn.Parameter(values.to(device))})

    @property
    def _values(self) -> Tensor:
        return self._adam.parameters["medium"]

    @property
    def background(self) -> Tensor:
        """(3,) the colour of open water."""
        return torch.sigmoid(self._values[2])

    def apply(self, colors: Tensor, depths: Tensor) -> Tensor:
        """Colours (N, 3) as they are seen through `depths` (N,) of it."""
        rates = torch.nn.functional.softplus(self._values[:2])
        kept = torch.exp(-depths[:, None] * rates[0])
        added = 1.0 - torch.exp(-depths[:, None] * rates[1])
        return colors * kept + self.background * added

    def step(self, share: float) -> None:
        """One update from the gradients that are there; `share` of the training is done."""
        self._adam.step({"medium": RATE * _LAST_SHARE**share})

    def described(self, scale: float) -> dict[str, list[float]]:
        """For the report; `scale` median depths are one unit of the SfM model."""
        with torch.no_grad():
            rates = scale * torch.nn.functional.softplus(self._values[:2])
            rows = {
                "attenuation": rates[0],
                "backscatter": rates[1],
                "colour": self.background,
            }
        return {name: [round(float(v), 5) for v in row.detach()] for name, row in rows.items()}

    def state(self) -> dict[str, object]:
        """For a checkpoint."""
        return {"values": self._values.data, "adam": self._adam.state()}

    def restore(self, state: dict[str, object]) -> None:
        """Take over what `state` returned."""
        values, adam = state["values"], state["adam"]
        if not isinstance(values, Tensor) or not isinstance(adam, dict):
            raise ValueError("medium state has an unexpected form")
        device = self._values.device
        self._adam.parameters["medium"] = torch.nn.Parameter(values.to(device))
        self._adam.restore(adam)
