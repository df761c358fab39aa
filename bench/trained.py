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
from worker_agent.training.dataset import Dataset, load_dataset
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
    Plan(cpu_s=60, steps=700, cap=25_000, psnr=24.5, ssim=0.84),
    Plan(cpu_s=180, steps=1700, cap=40_000, psnr=25.5, ssim=0.90),
)
ROUNDS = 5  # of the two rasterizers
GRADIENT_GAUSSIANS = 3000  # float64 autograd keeps every pixel of every gaussian

Render = Callable[[list[torch.Tensor]], torch.Tensor]


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


@dataclass(frozen=True, slots=True)
class Both:
    """The two rasterizers, called alike, on one view of a dataset."""

    dataset: Dataset
    view: int
    degree: int

    def torch_only(self, values: list[torch.Tensor]) -> torch.Tensor:
        kind = values[0].dtype
        viewmat, intrinsics = self._camera
        return rasterize(
            *values, viewmat.to(kind), intrinsics.to(kind), *self.dataset.size, self.degree
        )  # fmt: skip

    def tiled(self, values: list[torch.Tensor]) -> torch.Tensor:
        width, height = self.dataset.size
        viewmat, intrinsics = self._camera
        image, _, _ = rasterization(
            *values,
            viewmats=viewmat[None],
            Ks=intrinsics[None],
            width=width,
            height=height,
            sh_degree=self.degree,
        )
        return image[0]

    @property
    def _camera(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.dataset.viewmats[self.view], self.dataset.intrinsics[self.view]

    def gradients(
        self, render: Render, values: list[torch.Tensor], kind: torch.dtype
    ) -> tuple[list[torch.Tensor], float]:
        """(of a fixed weighing of the image, CPU-seconds forward and backward)."""
        width, height = self.dataset.size
        weight = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0))
        leaves = [value.to(kind).clone().requires_grad_() for value in values]
        began = time.process_time()
        (render(leaves) * weight.to(kind)).sum().backward()
        seconds = time.process_time() - began
        return [leaf.grad for leaf in leaves if leaf.grad is not None], seconds

    def errors(self, values: list[torch.Tensor]) -> tuple[float, float]:
        """(ours, torch's in float32): the largest of the parameters, relative to float64."""
        truth = self.gradients(self.torch_only, values, torch.float64)[0]
        ours, theirs = (
            max(
                float((one.double() - two).norm() / two.norm())
                for one, two in zip(
                    self.gradients(render, values, torch.float32)[0], truth, strict=True
                )
            )
            for render in (self.tiled, self.torch_only)
        )
        return ours, theirs


def rasterizers(name: str, trainer: Trainer) -> list[Result]:
    """The two rasterizers on the trained gaussians, and their gradients."""
    numba.set_num_threads(1)
    dataset = trainer.dataset
    p = {key: value.detach() for key, value in trainer.parameters.items()}
    trainee = [
        p["means"], p["quats"], p["scales"].exp(), p["opacities"].sigmoid(),
        torch.cat([p["sh0"], p["shN"]], dim=1),
    ]  # fmt: skip
    degree = round(trainee[-1].shape[1] ** 0.5) - 1
    both = [Both(dataset, view, degree) for view in dataset.test]
    ratios = []
    for _ in range(ROUNDS):
        slow = both[0].gradients(both[0].torch_only, trainee, torch.float32)[1]
        ratios.append(slow / both[0].gradients(both[0].tiled, trainee, torch.float32)[1])
    drawn = [both[0].errors(_drawn(dataset, seed)) for seed in range(ROUNDS)]
    trained_errors = [one.errors(trainee) for one in both]
    return [
        Result(
            name=f"raster_over_torch[{name}]",
            value=statistics.median(ratios),
            unit="x",
            better="higher",
            target=10.0,
        ),
        *_error_results(name, drawn),
        *_error_results(f"{name}, trained", trained_errors),
    ]


def _drawn(dataset: Dataset, seed: int) -> list[torch.Tensor]:
    """Gaussians at the model's points with shapes drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    start = initial_gaussians(
        dataset.points,
        dataset.colors,
        count=GRADIENT_GAUSSIANS,
        sh_degree=1,
        generator=generator,
    )
    p = {key: value.detach() for key, value in start.items()}
    shapes = torch.exp(2 * torch.rand(GRADIENT_GAUSSIANS, 3, generator=generator) - 1.5)
    return [
        p["means"],
        p["quats"],
        p["scales"].exp() * shapes,
        0.05 + 0.9 * torch.rand(GRADIENT_GAUSSIANS, generator=generator),
        torch.cat([p["sh0"], p["shN"]], dim=1),
    ]


def _error_results(label: str, errors: list[tuple[float, float]]) -> list[Result]:
    return [
        Result(
            name=f"gradient_error[{label}]",
            value=max(ours for ours, _ in errors),
            unit="",
            better="lower",
            target=1e-5,
        ),
        Result(
            name=f"gradient_error_torch[{label}]",
            value=max(theirs for _, theirs in errors),
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
