"""The training and rasterizer figures of bench/reconstruct.py, on a registered run directory."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numba
import torch

from bench.results import Result
from bench.torch_raster import rasterize
from dispatcher.settings import PipelineConfig
from worker_agent.training.backend import cpu_backend
from worker_agent.training.dataset import load_dataset
from worker_agent.training.gaussians import initial_gaussians
from worker_agent.training.rasterize_cpu import rasterization
from worker_agent.training.settings import TrainSettings
from worker_agent.training.trainer import Trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A training within `cpu_s` CPU-seconds and what must come of it."""

    cpu_s: int
    steps: int
    cap: int
    psnr: float
    ssim: float


PLANS = (
    Plan(cpu_s=60, steps=1200, cap=30_000, psnr=24.5, ssim=0.84),
    Plan(cpu_s=180, steps=2800, cap=40_000, psnr=25.5, ssim=0.90),
)
ROUNDS = 5  # of the two rasterizers
GRADIENT_GAUSSIANS = 3000  # float64 autograd keeps every pixel of every gaussian

Render = Callable[[list[torch.Tensor]], torch.Tensor]
Gradients = Callable[[Render, list[torch.Tensor], torch.dtype], tuple[list[torch.Tensor], float]]


def trained(name: str, plan: Plan, run_dir: Path) -> tuple[list[Result], Trainer]:
    train = PipelineConfig().as_dict()["train"]
    train["cpu"] |= {"width": 320, "steps": plan.steps, "cap": plan.cap, "threads": 1}
    settings = TrainSettings.from_config(train, "cpu")
    dataset = load_dataset(
        run_dir / "frames",
        run_dir / "sfm" / "model",
        width=settings.width,
        test_every=settings.test_every,
    )
    backend = cpu_backend(settings.threads)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            dataset,
            settings,
            backend,
            checkpoint=Path(scratch) / "checkpoint.pt",
            warn=lambda line: print(line, file=sys.stderr),
        )
        began = time.process_time()
        result = trainer.run(lambda _: None)
        seconds = time.process_time() - began
    label = f"{plan.cpu_s}[{name}]"
    return [
        Result(
            name=f"psnr_{label}",
            value=result.quality.psnr,
            unit="dB",
            better="higher",
            target=plan.psnr,
        ),
        Result(
            name=f"ssim_{label}",
            value=result.quality.ssim,
            unit="",
            better="higher",
            target=plan.ssim,
        ),
        Result(name=f"cpu_s_{label}", value=seconds, unit="s", better="lower", target=plan.cpu_s),
        Result(name=f"gaussians_{label}", value=result.gaussians, unit="", better="lower"),
    ], trainer


def rasterizers(name: str, trainer: Trainer) -> list[Result]:
    """The two rasterizers on the trained gaussians, and their gradients."""

    numba.set_num_threads(1)
    dataset = trainer.dataset
    view = dataset.test[0]
    width, height = dataset.size
    viewmat, intrinsics = dataset.viewmats[view], dataset.intrinsics[view]
    p = {key: value.detach() for key, value in trainer.parameters.items()}
    trainee = [
        p["means"], p["quats"], p["scales"].exp(), p["opacities"].sigmoid(),
        torch.cat([p["sh0"], p["shN"]], dim=1),
    ]  # fmt: skip
    degree = round(trainee[-1].shape[1] ** 0.5) - 1
    weight = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0))

    def torch_only(values: list[torch.Tensor]) -> torch.Tensor:
        kind = values[0].dtype
        return rasterize(
            *values, viewmat.to(kind), intrinsics.to(kind), width, height, degree
        )  # fmt: skip

    def tiled(values: list[torch.Tensor]) -> torch.Tensor:
        image, _, _ = rasterization(
            *values,
            viewmats=viewmat[None],
            Ks=intrinsics[None],
            width=width,
            height=height,
            sh_degree=degree,
        )
        return image[0]

    def gradients(
        render: Render,
        values: list[torch.Tensor],
        kind: torch.dtype,
    ) -> tuple[list[torch.Tensor], float]:
        leaves = [value.to(kind).clone().requires_grad_() for value in values]
        began = time.process_time()
        (render(leaves) * weight.to(kind)).sum().backward()
        seconds = time.process_time() - began
        return [leaf.grad for leaf in leaves if leaf.grad is not None], seconds

    ratios = []
    for _ in range(ROUNDS):
        slow = gradients(torch_only, trainee, torch.float32)[1]
        ratios.append(slow / gradients(tiled, trainee, torch.float32)[1])
    return [
        Result(
            name=f"raster_over_torch[{name}]",
            value=statistics.median(ratios),
            unit="x",
            better="higher",
            target=10.0,
        ),
        *_gradient_errors(name, trainer, torch_only, tiled, gradients),
    ]


def _gradient_errors(
    name: str, trainer: Trainer, torch_only: Render, tiled: Render, gradients: Gradients
) -> list[Result]:
    """Of gaussians at the model's points with shapes drawn at random."""
    dataset = trainer.dataset
    mine, theirs = [], []
    for draw in range(ROUNDS):
        generator = torch.Generator().manual_seed(draw)
        start = initial_gaussians(
            dataset.points,
            dataset.colors,
            count=GRADIENT_GAUSSIANS,
            sh_degree=1,
            generator=generator,
        )
        p = {key: value.detach() for key, value in start.items()}
        shapes = torch.exp(2 * torch.rand(GRADIENT_GAUSSIANS, 3, generator=generator) - 1.5)
        values = [
            p["means"],
            p["quats"],
            p["scales"].exp() * shapes,
            0.05 + 0.9 * torch.rand(GRADIENT_GAUSSIANS, generator=generator),
            torch.cat([p["sh0"], p["shN"]], dim=1),
        ]
        truth = gradients(torch_only, values, torch.float64)[0]
        for render, errors in ((tiled, mine), (torch_only, theirs)):
            found = gradients(render, values, torch.float32)[0]
            errors.append(
                max(
                    float((one.double() - two).norm() / two.norm())
                    for one, two in zip(found, truth, strict=True)
                )
            )
    return [
        Result(
            name=f"gradient_error[{name}]",
            value=statistics.median(mine),
            unit="",
            better="lower",
            target=1e-5,
        ),
        Result(
            name=f"gradient_error_torch[{name}]",
            value=statistics.median(theirs),
            unit="",
            better="lower",
        ),
    ]


def figures(name: str, run_dir: Path) -> Iterator[Result]:
    """Of every plan, and of the rasterizers on what the first one made."""
    for plan in PLANS:
        results, trainer = trained(name, plan, run_dir)
        yield from results
        if plan is PLANS[0]:
            yield from rasterizers(name, trainer)
