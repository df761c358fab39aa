"""A rasterizer for hosts without a GPU that is called like `gsplat.rasterization`.

Same inputs, outputs and conventions as gsplat 1.5 with `packed=False` (alpha threshold 1/255,
alpha cap 0.999, transmittance stop 1e-4), so that one trainer serves both. All between the inputs
and the image is computed in float64: see `tile_kernels`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from worker_agent.training import tile_kernels as kernels
from worker_agent.training.projection import ALPHA_MIN, project, spherical_harmonics


class _Composite(torch.autograd.Function):
    """Blend the projected gaussians of one camera; N gaussians, 3 channels, in float64."""

    @staticmethod
    def forward(
        ctx: Any,
        means2d: Tensor,  # (1, N, 2) float32, that of the meta dictionary: it gets the gradients
        centres: Tensor,  # (N, 2), the same in float64
        conics: Tensor,  # (N, 3)
        opacities: Tensor,  # (N,)
        colors: Tensor,  # (N, 3)
        radii: Tensor,  # (N, 2)
        depths: Tensor,  # (N,)
        width: int,
        height: int,
    ) -> tuple[Tensor, Tensor]:
        visible = np.flatnonzero((radii > 0).all(-1).numpy())
        order = visible[np.argsort(depths.detach().numpy()[visible], kind="stable")]
        opacity = opacities.detach().numpy()[order]
        rows = np.empty((len(order), kernels.GAUSSIAN_COLUMNS))
        rows[:, kernels.U : kernels.V + 1] = centres.numpy()[order]
        rows[:, kernels.XX : kernels.YY + 1] = conics.detach().numpy()[order]
        rows[:, kernels.OPACITY] = opacity
        rows[:, kernels.RED : kernels.BLUE + 1] = colors.detach().numpy()[order]
        rows[:, kernels.LIMIT] = np.log(np.maximum(opacity / ALPHA_MIN, 1.0))
        rows[:, kernels.HALF_U : kernels.HALF_V + 1] = radii.numpy()[order]
        columns = -(-width // kernels.TILE)
        bins = kernels.bin_gaussians(rows, columns, -(-height // kernels.TILE))
        image = np.empty((height, width, 3))
        transmittance = np.empty((height, width))
        last = np.empty((height, width), np.int32)
        kernels.composite(rows, bins[0], bins[1], columns, image, transmittance, last)
        ctx.means2d = means2d
        ctx.buffers = (order, rows, bins, columns, transmittance, last)
        return torch.from_numpy(image), torch.from_numpy(1.0 - transmittance)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_image: Tensor, grad_alpha: Tensor) -> tuple[Tensor | None, ...]:
        order, rows, bins, columns, transmittance, last = ctx.buffers
        starts, ids, slot_starts, slots = bins
        per_place = np.empty((len(ids), kernels.GRADIENT_COLUMNS))
        kernels.composite_gradient(
            rows,
            starts,
            ids,
            columns,
            transmittance,
            last,
            np.ascontiguousarray(grad_image.numpy()),
            np.ascontiguousarray(-grad_alpha.numpy()),
            per_place,
        )
        count = ctx.means2d.shape[1]
        total = np.zeros((count, kernels.GRADIENT_COLUMNS))
        kernels.gather_gradients(per_place, slot_starts, slots, order, total)
        gradient = torch.from_numpy(total)
        ctx.means2d.absgrad = gradient[None, :, kernels.G_ABS_U : kernels.G_ABS_V + 1].float()
        return (
            gradient[None, :, kernels.G_U : kernels.G_V + 1].float(),
            None,
            gradient[:, kernels.G_XX : kernels.G_YY + 1],
            gradient[:, kernels.G_OPACITY],
            gradient[:, kernels.G_RED : kernels.G_BLUE + 1],
            None,
            None,
            None,
            None,
        )


def rasterization(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = False,
    backgrounds: Tensor | None = None,
    absgrad: bool = True,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Render N gaussians from one camera; all tensors float32 on the CPU.

    means (N, 3); quats (N, 4) wxyz; scales (N, 3) and opacities (N,) activated; colors (N, 3), or
    SH coefficients (N, K, 3) with `sh_degree`; viewmats (1, 4, 4) world to camera; Ks (1, 3, 3);
    backgrounds (1, 3). Returns image (1, H, W, 3), alpha (1, H, W, 1) and meta with `means2d`
    (1, N, 2), `radii` (1, N, 2), `depths`, `conics`, and what else gsplat's strategies read. After
    the backward pass meta["means2d"].absgrad (1, N, 2) holds the sums of absolute screen gradients
    (AbsGS, Ye et al. 2024), which cost nothing extra here.

    Raises ValueError for what only the CUDA rasterizer does: packed, several cameras at once.
    """
    if packed or not absgrad or viewmats.shape[0] != 1:
        raise ValueError("the CPU rasterizer renders one camera, with packed=False, absgrad=True")
    opacities = opacities.double()
    seen = project(
        means.double(),
        quats.double(),
        scales.double(),
        opacities,
        viewmats.double(),
        Ks.double(),
        width,
        height,
        eps2d=eps2d,
        near_plane=near_plane,
        far_plane=far_plane,
        radius_clip=radius_clip,
    )
    if sh_degree is not None:
        centre = -viewmats[0, :3, :3].T @ viewmats[0, :3, 3]
        colors = spherical_harmonics(sh_degree, means - centre, colors)
        colors = (colors + 0.5).clamp_min(0.0)
    means2d = seen.means2d.float()
    image, alpha = _Composite.apply(  # type: ignore[no-untyped-call]
        means2d,
        seen.means2d[0].detach(),
        seen.conics[0],
        opacities,
        colors.double(),
        seen.radii[0],
        seen.depths[0],
        width,
        height,
    )
    image, alpha = image.float(), alpha.float()
    if backgrounds is not None:
        image = image + (1.0 - alpha)[..., None] * backgrounds[0]
    meta = {
        "means2d": means2d,
        "radii": seen.radii,
        "depths": seen.depths.float(),
        "conics": seen.conics.float(),
        "width": width,
        "height": height,
        "n_cameras": 1,
        "gaussian_ids": None,  # of packed ones
    }
    return image[None], alpha[None, ..., None], meta
