"""Depth maps as a regulariser: what is rendered should lie where a depth model says it does."""

from __future__ import annotations

from torch import Tensor

from worker_agent.training.backend import Backend
from worker_agent.training.draw import draw
from worker_agent.training.gaussians import Parameters

__all__ = ["depth_loss", "expected_depth"]

_SOLID = 0.5  # least alpha of a pixel whose depth means anything
_NEAREST = 1e-3  # of the scene's depth


def expected_depth(
    backend: Backend, parameters: Parameters, pose: Tensor, matrix: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(depth (H, W), alpha (H, W)) from `pose` (4, 4) through `matrix` (3, 3) at `size` (w, h).

    Depth along the camera's axis, the mean over what a pixel shows by its share in it ("ED" of
    gsplat): drawn as a colour, so that every rasterizer can. Has a gradient.
    """
    deep = parameters["means"] @ pose[2, :3] + pose[2, 3]
    colors = deep[:, None].expand(-1, 3).contiguous()
    image, solid, _ = draw(backend, parameters, colors, pose, matrix, size)
    return image[..., 0] / solid.clamp_min(_NEAREST), solid


def depth_loss(depth: Tensor, alpha: Tensor, disparities: Tensor) -> Tensor:
    """Mean difference of inverse depths over the pixels whose depth is known, (H, W) each; 0 where
    there is none. Inverse: that is what a model is sure of, and far things weigh little."""
    known = (disparities > 0) & (alpha.detach() > _SOLID)
    if not known.any():
        return depth.new_zeros(())
    rendered = 1.0 / depth[known].clamp_min(_NEAREST)
    return (rendered - disparities[known]).abs().mean()
