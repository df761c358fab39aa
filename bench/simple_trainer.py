"""gsplat 1.5.3's `examples/simple_trainer.py default`, on a dataset of ours.

That file is not part of the package and needs a dozen others, so what its defaults do is written
down here, with gsplat's own DefaultStrategy, rates and initialisation; the loss, the views held out
and the measuring are those of our trainer, so that both are compared on the same.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from gsplat import DefaultStrategy
from scipy.spatial import cKDTree
from torch import Tensor

from stitch.gaussians import SH_C0
from worker_agent.training.backend import Backend
from worker_agent.training.dataset import Dataset
from worker_agent.training.default import scene_extent
from worker_agent.training.evaluation import Quality, evaluate
from worker_agent.training.ssim import ssim
from worker_agent.training.views import Views

MAX_STEPS = 30_000  # of its schedule; it measures at 7,000 of these, too
_SH_DEGREE, _SH_EVERY = 3, 1000
_OPACITY, _SSIM = 0.1, 0.2
_RATES = {
    "means": 1.6e-4,  # times the scene's scale
    "scales": 5e-3,
    "quats": 1e-3,
    "opacities": 5e-2,
    "sh0": 2.5e-3,
    "shN": 2.5e-3 / 20,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    quality: Quality
    gaussians: int
    seconds: float  # of the steps


def simple_trainer(dataset: Dataset, backend: Backend, *, steps: int, seed: int = 42) -> Outcome:
    """`steps` of the MAX_STEPS steps."""
    torch.manual_seed(seed)
    device = backend.device
    views = Views(dataset, device)
    scale = scene_extent(dataset.viewmats)
    splats = _initial(dataset, device)
    optimizers = {
        name: torch.optim.Adam(
            [
                {
                    "params": splats[name],
                    "lr": rate * (scale if name == "means" else 1.0),
                    "name": name,
                }
            ],
            eps=1e-15,
        )
        for name, rate in _RATES.items()
    }
    decay = torch.optim.lr_scheduler.ExponentialLR(
        optimizers["means"], gamma=0.01 ** (1.0 / MAX_STEPS)
    )
    strategy = DefaultStrategy()
    strategy.check_sanity(splats, optimizers)
    state = strategy.initialize_state(scene_scale=scale)

    def rendered(view: int, degree: int) -> tuple[Tensor, dict[str, object]]:
        pose, matrix, width, height = views.camera(view, 1)
        image, _, meta = backend.rasterize(
            means=splats["means"],
            quats=splats["quats"],
            scales=torch.exp(splats["scales"]),
            opacities=torch.sigmoid(splats["opacities"]),
            colors=torch.cat([splats["sh0"], splats["shN"]], dim=1),
            viewmats=pose[None],
            Ks=matrix[None],
            width=width,
            height=height,
            sh_degree=degree,
            packed=False,
        )
        return image[0], meta

    began = time.monotonic()
    order: list[int] = []
    for step in range(steps):
        if not order:
            order = [dataset.train[i] for i in torch.randperm(len(dataset.train)).tolist()]
        view = order.pop()
        image, meta = rendered(view, min(step // _SH_EVERY, _SH_DEGREE))
        strategy.step_pre_backward(splats, optimizers, state, step, meta)
        truth = views.truth(view)
        similarity = ssim(image.permute(2, 0, 1), truth.permute(2, 0, 1))
        loss = (1.0 - _SSIM) * (image - truth).abs().mean() + _SSIM * (1.0 - similarity)
        torch.autograd.backward(loss)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay.step()
        strategy.step_post_backward(splats, optimizers, state, step, meta, packed=False)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.monotonic() - began

    @torch.no_grad()
    def look(view: int) -> Tensor:
        return views.unmasked(rendered(view, _SH_DEGREE)[0], views.truth(view), view)

    quality = evaluate(look, views.truth, dataset.test)
    return Outcome(quality, len(splats["means"]), seconds)


def _initial(dataset: Dataset, device: torch.device) -> torch.nn.ParameterDict:
    points, colors = torch.from_numpy(dataset.points), torch.from_numpy(dataset.colors)
    apart = torch.from_numpy(cKDTree(dataset.points).query(dataset.points, 4)[0][:, 1:])
    count = len(points)
    values = {
        "means": points,
        "scales": torch.log((apart**2).mean(dim=-1).sqrt().float())[:, None].repeat(1, 3),
        "quats": torch.rand(count, 4),
        "opacities": torch.logit(torch.full((count,), _OPACITY)),
        "sh0": ((colors - 0.5) / SH_C0)[:, None],
        "shN": torch.zeros(count, (_SH_DEGREE + 1) ** 2 - 1, 3),
    }
    return torch.nn.ParameterDict(
        {name: torch.nn.Parameter(value.float().to(device)) for name, value in values.items()}
    )
