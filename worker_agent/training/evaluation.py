"""Quality on held-out views, and a picture of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from worker_agent.training.lpips import MIN_PIXELS, Lpips
from worker_agent.training.ssim import ssim


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over the held-out views."""

    psnr: float  # dB
    ssim: float
    lpips: float | None = None  # None: no weights for it, or too small an image


def psnr(rendered: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1]; NaN for a rendering with NaN."""
    error = float(torch.mean((rendered.double() - truth.double()) ** 2))
    return -10.0 * math.log10(max(error, 1e-10)) if math.isfinite(error) else math.nan


@torch.no_grad()
def evaluate(
    render: Callable[[int], Tensor],
    truth: Callable[[int], Tensor],
    views: Sequence[int],
    lpips: Lpips | None = None,
) -> Quality:
    """`render` and `truth` give (H, W, 3) in [0, 1] for the index of a view; `views` not empty."""
    ratios, similarities, distances = [], [], []
    for view in views:
        rendered, target = render(view).clamp(0.0, 1.0), truth(view)
        ratios.append(psnr(rendered, target))
        pair = rendered.permute(2, 0, 1), target.permute(2, 0, 1)
        similarities.append(float(ssim(*pair)))
        if lpips is not None and min(rendered.shape[:2]) >= MIN_PIXELS:
            distances.append(lpips.distance(*pair))
    return Quality(
        sum(ratios) / len(ratios),
        sum(similarities) / len(similarities),
        sum(distances) / len(distances) if distances else None,
    )


@torch.no_grad()
def write_preview(
    path: Path,
    render: Callable[[int], Tensor],
    truth: Callable[[int], Tensor],
    views: Sequence[int],
    in_air: Callable[[int], Tensor | None] = lambda _: None,
) -> None:
    """JPEG with one row per view: the rendering at the left, the truth beside it, and at the right
    the scene without the water where `in_air` knows it."""
    rows = []
    for view in views:
        shown = [render(view), truth(view), in_air(view)]
        pair = torch.cat([p.clamp(0.0, 1.0) for p in shown if p is not None], dim=1)
        rows.append((pair.cpu().numpy() * 255.0 + 0.5).astype(np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    Image.fromarray(np.concatenate(rows)).save(temporary, format="JPEG", quality=90)
    temporary.replace(path)
