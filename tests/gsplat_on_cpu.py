"""gsplat's own Python with its CUDA kernels played by torch on the CPU.

`gsplat.rasterization` checks shapes, dtypes and its arguments, and fills its meta dictionary, in
Python; only what it then calls needs a GPU. Here that is its own reference in torch (which its
authors test the kernels against) and, for the pixels, the kernels' source written down in torch.
All in float64 inside, so that what differs from ours is a difference in what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gsplat
import torch
from gsplat.cuda import _torch_impl as reference
from gsplat.cuda import _wrapper as wrapper
from torch import Tensor

from worker_agent.training.backend import Backend

_ALPHA_MIN, _ALPHA_MAX, _STOP = 1.0 / 255.0, 0.999, 1e-4


def backend() -> Backend:
    """As `cuda_backend` makes it; only to be used within `kernels`."""
    return Backend("cuda", torch.device("cpu"), "gsplat on the CPU", gsplat.rasterization)


@contextmanager
def kernels() -> Iterator[None]:
    """gsplat's compiled functions are those below."""
    before = wrapper._make_lazy_cuda_func, wrapper._make_lazy_cuda_obj
    wrapper._make_lazy_cuda_func = _BY_NAME.__getitem__
    wrapper._make_lazy_cuda_obj = str
    try:
        yield
    finally:
        wrapper._make_lazy_cuda_func, wrapper._make_lazy_cuda_obj = before


def _checked(*tensors: Tensor | None) -> None:
    """As CHECK_INPUT of its C++ does, and the kernels' reading of float pointers."""
    for one in tensors:
        if one is not None:
            assert one.is_contiguous() and one.dtype in (torch.float32, torch.int32)


def _projected(
    means: Tensor, quats: Tensor, scales: Tensor, viewmats: Tensor, intrinsics: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    covars, _ = reference._quat_scale_to_covar_preci(quats, scales, compute_preci=False)
    found: tuple[Tensor, ...] = reference._fully_fused_projection(
        means, covars, viewmats, intrinsics, *rest
    )
    return found


def _projection(
    means: Tensor, covars: None, quats: Tensor, scales: Tensor, opacities: Tensor,
    viewmats: Tensor, intrinsics: Tensor, width: int, height: int, eps2d: float, near: float,
    far: float, radius_clip: float, compensated: bool, camera: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    _checked(means, quats, scales, opacities, viewmats, intrinsics)
    assert covars is None and not compensated and camera == "CameraModelType.PINHOLE"
    wide = [t.double() for t in (means, quats, scales, viewmats, intrinsics)]
    radii, means2d, depths, conics, _ = _projected(*wide, width, height, eps2d, near, far)
    # The reference does not know the bound by opacity that the kernel has.
    extent = (2.0 * torch.log(opacities.double() * 255.0)).clamp_min(0.0).sqrt().clamp_max(3.33)
    inverse = torch.linalg.inv(
        torch.stack([conics[..., 0], conics[..., 1], conics[..., 1], conics[..., 2]], -1).reshape(
            *conics.shape[:-1], 2, 2
        )
    )
    deviations = inverse.diagonal(dim1=-2, dim2=-1).sqrt()
    reach = torch.ceil(extent[:, None] * deviations)
    inside = ((means2d + reach > 0) & (means2d - reach < torch.tensor([width, height]))).all(-1)
    seen = inside & (radii > 0).all(-1) & (opacities >= _ALPHA_MIN) & (reach > radius_clip).any(-1)
    radii = torch.where(seen[..., None], reach, 0.0).int()
    return radii, means2d.float(), depths.float(), conics.float(), torch.empty(0)


def _projection_gradient(
    means: Tensor, covars: None, quats: Tensor, scales: Tensor, viewmats: Tensor,
    intrinsics: Tensor, width: int, height: int, eps2d: float, camera: str, radii: Tensor,
    conics: Tensor, compensations: None, v_means2d: Tensor, v_depths: Tensor, v_conics: Tensor,
    v_compensations: None, of_viewmats: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    _checked(means, quats, scales, viewmats, intrinsics, radii, conics)
    _checked(v_means2d, v_depths, v_conics)
    leaves = [t.detach().double().requires_grad_() for t in (means, quats, scales)]
    with torch.enable_grad():
        _, means2d, depths, conics, _ = _projected(
            *leaves, viewmats.double(), intrinsics.double(), width, height, eps2d
        )
        seen = (radii > 0).all(-1, keepdim=True)
        gradients = torch.autograd.grad(
            [means2d, depths, conics],
            leaves,
            [v_means2d.double() * seen, v_depths.double() * seen[..., 0], v_conics.double() * seen],
        )
    v_means, v_quats, v_scales = (g.float() for g in gradients)
    return v_means, None, v_quats, v_scales, None


def _harmonics(degree: int, directions: Tensor, bands: Tensor, masks: Tensor) -> Tensor:
    _checked(directions, bands)
    assert masks.dtype == torch.bool and masks.is_contiguous()
    colors: Tensor = reference._spherical_harmonics(degree, directions.double(), bands.double())
    return torch.where(masks[..., None], colors, 0.0).float()


def _harmonics_gradient(
    number: int, degree: int, directions: Tensor, bands: Tensor, masks: Tensor, v_colors: Tensor,
    of_directions: bool,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    _checked(directions, bands, v_colors)
    assert number == bands.shape[-2]
    leaves = [t.detach().double().requires_grad_() for t in (bands, directions)]
    with torch.enable_grad():
        colors = reference._spherical_harmonics(degree, leaves[1], leaves[0])
        v_bands, v_directions = torch.autograd.grad(
            colors, leaves, v_colors.double() * masks[..., None], allow_unused=True
        )
    if v_directions is None:
        v_directions = torch.zeros_like(directions)
    return v_bands.float(), v_directions.float() if of_directions else None


def _intersect(
    means2d: Tensor, radii: Tensor, depths: Tensor, image_ids: None, gaussian_ids: None,
    images: int, tile_size: int, tile_width: int, tile_height: int, sort: bool, segmented: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """All gaussians that are seen, by depth, as if the image were one tile."""
    _checked(means2d, radii, depths)
    assert images == 1 and sort and not segmented and radii.shape == (*depths.shape, 2)
    order = torch.argsort(depths[0], stable=True)
    order = order[(radii[0, order] > 0).all(-1)]
    return (radii > 0).all(-1).int(), order.long(), order.int()


def _offsets(ids: Tensor, images: int, tile_width: int, tile_height: int) -> Tensor:
    return torch.zeros(images, tile_height, tile_width, dtype=torch.int32)


@torch.no_grad()
def _blended(
    means2d: Tensor, conics: Tensor, opacities: Tensor, size: tuple[int, int], ids: Tensor
) -> tuple[Tensor, ...]:
    """(offsets (P, M, 2), falloff (P, M), alpha (P, M), transmittance before (P, M)) of P pixels
    and the M gaussians of `ids`; alpha is 0 where the kernel skips one."""
    width, height = size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    chosen = ids.long()
    offset = means2d[0, chosen].double() - torch.stack([x, y], -1).reshape(-1, 1, 2)
    a, b, c = conics[0, chosen].double().unbind(-1)
    sigma = 0.5 * (a * offset[..., 0] ** 2 + c * offset[..., 1] ** 2)
    sigma = sigma + b * offset[..., 0] * offset[..., 1]
    falloff = torch.exp(-sigma)
    alpha = (opacities[0, chosen].double() * falloff).clamp_max(_ALPHA_MAX)
    alpha = torch.where((sigma >= 0) & (alpha >= _ALPHA_MIN), alpha, 0.0)
    after = torch.cumprod(1.0 - alpha, dim=1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=1)
    return offset, falloff, torch.where(after > _STOP, alpha, 0.0), before


def _pixels(
    means2d: Tensor, conics: Tensor, colors: Tensor, opacities: Tensor, backgrounds: Tensor | None,
    masks: None, width: int, height: int, tile_size: int, offsets: Tensor, ids: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    _checked(means2d, conics, colors, opacities, backgrounds, offsets, ids)
    _, _, alpha, before = _blended(means2d, conics, opacities, (width, height), ids)
    image = (alpha * before) @ colors[0, ids.long()].double()
    left = torch.prod(1.0 - alpha, dim=1, keepdim=True)
    if backgrounds is not None:
        image = image + left * backgrounds[0].double()
    shape = (1, height, width)
    return (
        image.float().reshape(*shape, -1),
        (1.0 - left).float().reshape(*shape, 1),
        torch.zeros(shape, dtype=torch.int32),
    )


def _pixels_gradient(
    means2d: Tensor, conics: Tensor, colors: Tensor, opacities: Tensor, backgrounds: Tensor | None,
    masks: None, width: int, height: int, tile_size: int, offsets: Tensor, ids: Tensor,
    alphas: Tensor, last_ids: Tensor, v_image: Tensor, v_alphas: Tensor, absgrad: bool,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """RasterizeToPixels3DGSBwd.cu, all pixels and gaussians at once."""
    _checked(means2d, conics, colors, opacities, backgrounds, alphas, v_image, v_alphas)
    chosen = ids.long()
    offset, falloff, alpha, before = _blended(means2d, conics, opacities, (width, height), ids)
    v_out = v_image.reshape(-1, v_image.shape[-1]).double()
    color, opacity = colors[0, chosen].double(), opacities[0, chosen].double()
    left = torch.prod(1.0 - alpha, dim=1, keepdim=True)
    shown = v_out @ color.T  # (P, M) of each gaussian's colour along the gradient
    weighed = alpha * before * shown
    behind = weighed.flip(1).cumsum(1).flip(1) - weighed
    v_left = -v_alphas.reshape(-1, 1).double()
    if backgrounds is not None:
        v_left = v_left + v_out @ backgrounds[0].double()[:, None]
    v_alpha = before * shown - (behind + left * v_left) / (1.0 - alpha)
    drawn = alpha > 0
    v_color = (torch.where(drawn, alpha * before, 0.0)).T @ v_out
    free = drawn & (opacity * falloff <= _ALPHA_MAX)
    v_sigma = torch.where(free, -opacity * falloff * v_alpha, 0.0)
    a, b, c = conics[0, chosen].double().unbind(-1)
    dx, dy = offset.unbind(-1)
    v_xy = torch.stack([v_sigma * (a * dx + b * dy), v_sigma * (b * dx + c * dy)], -1)
    v_conic = torch.stack([0.5 * v_sigma * dx * dx, v_sigma * dx * dy, 0.5 * v_sigma * dy * dy], -1)
    v_opacity = torch.where(free, falloff * v_alpha, 0.0)

    def spread(value: Tensor, like: Tensor) -> Tensor:
        full = torch.zeros_like(like)
        full[0, chosen] = value.float()
        return full

    return (
        spread(v_xy.abs().sum(0), means2d) if absgrad else None,
        spread(v_xy.sum(0), means2d),
        spread(v_conic.sum(0), conics),
        spread(v_color, colors),
        spread(v_opacity.sum(0), opacities),
    )


_BY_NAME: dict[str, Callable[..., Any]] = {
    "projection_ewa_3dgs_fused_fwd": _projection,
    "projection_ewa_3dgs_fused_bwd": _projection_gradient,
    "spherical_harmonics_fwd": _harmonics,
    "spherical_harmonics_bwd": _harmonics_gradient,
    "intersect_tile": _intersect,
    "intersect_offset": _offsets,
    "rasterize_to_pixels_3dgs_fwd": _pixels,
    "rasterize_to_pixels_3dgs_bwd": _pixels_gradient,
}
