"""LPIPS: how different two images look, by the features of a network (Zhang et al. 2018, v0.1).

Written out, because a trained network is all that is needed of the packages that have it. The file
of weights is the operator's: a dictionary saved by torch with the convolutions of AlexNet or VGG-16
as torchvision names them (`features.0.weight`, ...) and the five weighings that belong to it as the
authors name them (`lin0.model.1.weight`, ...). docs/backends.md says how to make it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

MIN_PIXELS = 32  # of the shorter side: smaller images end inside the network
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class WeightsUnusable(ValueError):
    """The file is not there or not of this kind; the text says what is wrong, in one line."""


@dataclass(frozen=True, slots=True)
class _Network:
    """Index in `features` of each convolution -> (stride, padding); and where it is looked at:
    after the ReLU of these. A pooling of `pool` pixels, 2 apart, comes before those in `pooled`."""

    convolutions: Mapping[int, tuple[int, int]]
    looked_at: tuple[int, ...]
    pooled: tuple[int, ...]
    pool: int


_ALEX = _Network(
    {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}, (0, 3, 6, 8, 10), (3, 6), 3
)
_VGG = _Network(
    dict.fromkeys((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (1, 1)),
    (2, 7, 14, 21, 28),
    (5, 10, 17, 24),
    2,
)


class Lpips:
    """`distance` of two images; 0 for equal ones."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """Raises WeightsUnusable."""
        weights = _read(path)
        first = weights.get("features.0.weight")
        if first is None:
            raise WeightsUnusable(f"{path}: has no features.0.weight")
        self._network = _ALEX if first.shape[-1] == 11 else _VGG
        names = [f"features.{k}.{part}" for k in self._network.convolutions
                 for part in ("weight", "bias")]  # fmt: skip
        names += [f"lin{k}.model.1.weight" for k in range(len(self._network.looked_at))]
        missing = [name for name in names if name not in weights]
        if missing:
            raise WeightsUnusable(f"{path}: has no {missing[0]} ({len(missing)} are missing)")
        self._weights = {name: weights[name].to(device, torch.float32) for name in names}
        self._shift = torch.tensor(_SHIFT, device=device)[:, None, None]
        self._scale = torch.tensor(_SCALE, device=device)[:, None, None]
        try:
            probe = torch.zeros(3, MIN_PIXELS, MIN_PIXELS, device=device)
            self.distance(probe, probe)
        except RuntimeError as error:
            raise WeightsUnusable(f"{path}: {' '.join(str(error).split())[:200]}") from None

    @torch.no_grad()
    def distance(self, one: Tensor, two: Tensor) -> float:
        """Of images (3, H, W) in [0, 1], both sides at least MIN_PIXELS long."""
        total = 0.0
        pairs = zip(self._features(one), self._features(two), strict=True)
        for index, (first, second) in enumerate(pairs):
            apart = (_unit(first) - _unit(second)) ** 2
            weighing = self._weights[f"lin{index}.model.1.weight"]
            total += float(functional.conv2d(apart, weighing).mean())
        return total

    def _features(self, image: Tensor) -> list[Tensor]:
        network = self._network
        x = ((2.0 * image - 1.0 - self._shift) / self._scale)[None]
        found = []
        for index, (stride, padding) in network.convolutions.items():
            if index in network.pooled:
                x = functional.max_pool2d(x, network.pool, 2)
            weight, bias = (self._weights[f"features.{index}.{p}"] for p in ("weight", "bias"))
            x = torch.relu(functional.conv2d(x, weight, bias, stride=stride, padding=padding))
            if index in network.looked_at:
                found.append(x)
        return found


def _unit(features: Tensor) -> Tensor:
    return features / (features.pow(2).sum(dim=1, keepdim=True).sqrt() + _EPSILON)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsUnusable(f"{path}: is not there")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        summary = " ".join(str(error).split())[:120]
        raise WeightsUnusable(f"{path}: not a file of weights: {summary}") from None
    if not isinstance(data, dict):
        raise WeightsUnusable(f"{path}: not a dictionary of weights")
    return {str(name): value for name, value in data.items() if isinstance(value, Tensor)}
