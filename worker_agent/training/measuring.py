"""Gaussians that were not trained here, measured on the same held-out views as ours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from stitch.gaussians import Gaussians
from worker_agent.training.backend import Backend
from worker_agent.training.dataset import Dataset
from worker_agent.training.evaluation import Quality, evaluate
from worker_agent.training.lpips import Lpips

Look = Callable[[int], Tensor]


def measure(
    gaussians: Gaussians, dataset: Dataset, backend: Backend, lpips: Lpips | None
) -> tuple[Quality, Look, Look]:
    """(quality, rendering, truth) of `gaussians` in the SfM model's frame; the latter two give
    (H, W, 3) of a view."""
    device = backend.device
    normalisation = dataset.normalisation
    means = normalisation.apply(gaussians.means.astype(np.float64)).astype(np.float32)
    values = {
        "means": means,
        "quats": gaussians.quats,
        "scales": np.exp(gaussians.scales) * np.float32(normalisation.scale),
        "opacities": 1 / (1 + np.exp(-gaussians.opacities)),
        "colors": np.concatenate([gaussians.sh0[:, None], gaussians.shN], axis=1),
    }
    tensors = {
        name: torch.from_numpy(np.ascontiguousarray(value, np.float32)).to(device)
        for name, value in values.items()
    }
    width, height = dataset.size

    @torch.no_grad()
    def rendering(view: int) -> Tensor:
        image, _, _ = backend.rasterize(
            **tensors,
            viewmats=dataset.viewmats[view : view + 1].to(device),
            Ks=dataset.intrinsics[view : view + 1].to(device),
            width=width,
            height=height,
            sh_degree=gaussians.sh_degree,
            packed=False,
            absgrad=True,
            backgrounds=torch.zeros(1, 3, device=device),
        )
        found: Tensor = image[0]
        return found

    def truth(view: int) -> Tensor:
        return dataset.images[view].to(device).to(torch.float32).div_(255.0)

    def compared(view: int) -> Tensor:
        if dataset.masks is None:
            return rendering(view)
        shown = dataset.masks[view].to(device)
        return torch.where(shown[..., None], rendering(view), truth(view))

    return evaluate(compared, truth, dataset.test, lpips), rendering, truth
