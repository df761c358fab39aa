"""A picture of gaussians as they are trained: the call that both rasterizers take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from worker_agent.training.backend import Backend
from worker_agent.training.gaussians import Parameters

__all__ = ["draw"]


def draw(
    backend: Backend,
    parameters: Parameters,
    colors: Tensor,
    pose: Tensor,
    matrix: Tensor,
    size: tuple[int, int],
    *,
    sh_degree: int | None = None,
    background: Tensor | None = None,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """(picture (H, W, 3), alpha (H, W), what the rasterizer says of it) from `pose` (4, 4) through
    `matrix` (3, 3) at `size` (w, h).

    Scales are logarithms and opacities logits in `parameters`. `colors` (N, 3), or with
    `sh_degree` coefficients (N, K, 3); `background` (1, 3).
    """
    image, alpha, meta = backend.rasterize(
        means=parameters["means"],
        quats=parameters["quats"],
        scales=torch.exp(parameters["scales"]),
        opacities=torch.sigmoid(parameters["opacities"]),
        colors=colors,
        viewmats=pose[None],
        Ks=matrix[None],
        width=size[0],
        height=size[1],
        sh_degree=sh_degree,
        packed=False,
        absgrad=True,
        backgrounds=background,
    )
    return image[0], alpha[0, ..., 0], meta
