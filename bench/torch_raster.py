"""What the CPU rasterizer is compared with: the same projection, composited by torch alone.

Tile by tile, every pixel of a tile against every gaussian whose extent touches it, with a cumulated
product along depth; gradients by autograd. Works in float64, and is then the truth that
gradients are compared with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worker_agent.training.projection import ALPHA_MIN, project, spherical_harmonics

TILE = 16  # pixels; 8 and 32 are slower
_ALPHA_MAX = 0.999
_TRANSMITTANCE_MIN = 1e-4


def rasterize(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    coefficients: Tensor,
    viewmat: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    sh_degree: int,
) -> Tensor:
    """Image (H, W, 3) on black of N gaussians; arguments as `rasterize_cpu.rasterization` takes
    them, for one camera: viewmat (4, 4), intrinsics (3, 3)."""
    seen = project(means, quats, scales, opacities, viewmat[None], intrinsics[None], width, height)
    centre = -viewmat[:3, :3].T @ viewmat[:3, 3]
    colors = (spherical_harmonics(sh_degree, means - centre, coefficients) + 0.5).clamp_min(0.0)
    order = torch.argsort(seen.depths[0].detach(), stable=True)
    order = order[(seen.radii[0][order] > 0).all(-1)]
    centres, conics = seen.means2d[0][order], seen.conics[0][order]
    opacity, color = opacities[order], colors[order]
    low = (centres - seen.radii[0][order]).detach()
    high = (centres + seen.radii[0][order]).detach()
    rows = []
    for top in range(0, height, TILE):
        bottom = min(top + TILE, height)
        in_row = ((low[:, 1] < bottom) & (high[:, 1] > top)).nonzero()[:, 0]
        tiles = []
        for left in range(0, width, TILE):
            right = min(left + TILE, width)
            inside = (low[in_row, 0] < right) & (high[in_row, 0] > left)
            chosen = in_row[inside]
            tiles.append(
                _tile(
                    centres[chosen], conics[chosen], opacity[chosen], color[chosen],
                    (left, right, top, bottom),
                )
            )  # fmt: skip
        rows.append(torch.cat(tiles, dim=1))
    return torch.cat(rows, dim=0)


def _tile(
    centres: Tensor, conics: Tensor, opacity: Tensor, color: Tensor, box: tuple[int, int, int, int]
) -> Tensor:
    left, right, top, bottom = box
    x = torch.arange(left, right, dtype=centres.dtype) + 0.5
    y = torch.arange(top, bottom, dtype=centres.dtype) + 0.5
    dx = centres[:, 0] - x.repeat(bottom - top)[:, None]
    dy = centres[:, 1] - y.repeat_interleave(right - left)[:, None]
    sigma = 0.5 * (conics[:, 0] * dx * dx + conics[:, 2] * dy * dy) + conics[:, 1] * dx * dy
    alpha = (opacity * torch.exp(-sigma)).clamp(max=_ALPHA_MAX)
    alpha = torch.where((alpha >= ALPHA_MIN) & (sigma >= 0), alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1.0 - alpha, dim=1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=1)
    weights = torch.where(after > _TRANSMITTANCE_MIN, alpha * before, torch.zeros_like(alpha))
    return (weights @ color).reshape(bottom - top, right - left, 3)
