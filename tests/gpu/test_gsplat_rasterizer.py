"""gsplat on an NVIDIA GPU against the CPU rasterizer: one trainer relies on both agreeing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.simple_trainer import simple_trainer
from worker_agent.training.backend import Backend, cpu_backend, cuda_backend, cuda_usable
from worker_agent.training.dataset import Dataset, Normalisation
from worker_agent.training.settings import TrainSettings
from worker_agent.training.ssim import ssim
from worker_agent.training.trainer import Progress, Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not cuda_usable(), reason="no NVIDIA GPU that torch can use"),
]

WIDTH, HEIGHT = 75, 52


def scene(count: int = 300) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    means = torch.rand(count, 3, generator=generator) * torch.tensor([2.4, 1.6, 1.0])
    return {
        "means": means + torch.tensor([-1.2, -0.8, 1.5]),
        "quats": torch.randn(count, 4, generator=generator),
        "scales": 0.01 + 0.08 * torch.rand(count, 3, generator=generator),
        "opacities": 0.05 + 0.9 * torch.rand(count, generator=generator),
        "colors": torch.rand(count, 4, 3, generator=generator) - 0.2,
    }


def view() -> tuple[Tensor, Tensor]:
    intrinsics = torch.tensor([[60.0, 0.0, 37.0], [0.0, 61.0, 26.0], [0.0, 0.0, 1.0]])
    return torch.eye(4)[None], intrinsics[None]


def rendered(backend: Backend) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
    leaves = {k: v.to(backend.device).requires_grad_() for k, v in scene().items()}
    viewmats, intrinsics = (t.to(backend.device) for t in view())
    image, _, meta = backend.rasterize(
        **leaves,
        viewmats=viewmats,
        Ks=intrinsics,
        width=WIDTH,
        height=HEIGHT,
        sh_degree=1,
        packed=False,
        absgrad=True,
        backgrounds=torch.full((1, 3), 0.3, device=backend.device),
    )
    (image[0] ** 2).sum().backward()
    return image[0].detach().cpu(), leaves, meta


def test_image_gradients_and_absgrad_agree() -> None:
    image_cpu, leaves_cpu, meta_cpu = rendered(cpu_backend(2))
    image_gpu, leaves_gpu, meta_gpu = rendered(cuda_backend())
    assert float((image_cpu - image_gpu).abs().max()) < 1e-3
    pairs = [(leaves_cpu[name].grad, leaves_gpu[name].grad) for name in leaves_cpu]
    pairs.append((meta_cpu["means2d"].absgrad, meta_gpu["means2d"].absgrad))
    for mine, theirs in pairs:
        assert mine is not None and theirs is not None
        assert mine.shape == theirs.shape
        assert float((mine - theirs.cpu()).norm() / mine.norm()) < 1e-2
    assert meta_gpu["radii"].shape == meta_cpu["radii"].shape == (1, 300, 2)


def test_ssim_agrees() -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = torch.rand(2, 3, 40, 50, generator=generator)
    assert float(ssim(first.cuda(), second.cuda())) == pytest.approx(
        float(ssim(first, second)), abs=1e-5
    )


def dataset(backend: Backend, truth: dict[str, Tensor], *, width: int = WIDTH) -> Dataset:
    """Ten views of `truth`, rendered by `backend`; every second one with a hidden corner."""
    views = 10
    height = HEIGHT * width // WIDTH
    viewmats = torch.eye(4).repeat(views, 1, 1)
    viewmats[:, 0, 3] = torch.linspace(-0.2, 0.2, views)
    intrinsics = view()[1] * torch.tensor([width / WIDTH, height / HEIGHT, 1.0])[:, None]
    images = []
    with torch.no_grad():
        for index in range(views):
            image, _, _ = backend.rasterize(
                **{name: value.to(backend.device) for name, value in truth.items()},
                viewmats=viewmats[index : index + 1].to(backend.device),
                Ks=intrinsics.to(backend.device),
                width=width,
                height=height,
                sh_degree=1,
                packed=False,
            )
            images.append((image[0].clamp(0, 1) * 255).to(torch.uint8).cpu())
    masks = torch.ones(views, height, width, dtype=torch.bool)
    masks[::2, :5, :5] = False
    return Dataset(
        names=tuple(f"f{index:06d}.jpg" for index in range(views)),
        images=torch.stack(images),
        viewmats=viewmats,
        intrinsics=intrinsics.repeat(views, 1, 1),
        train=tuple(i for i in range(views) if i != 4),
        test=(4,),
        points=truth["means"].numpy(),
        colors=(truth["colors"][:, 0] * 0.282 + 0.5).clamp(0, 1).numpy(),
        normalisation=Normalisation(1.0, (0.0, 0.0, 0.0)),
        masks=masks,
    )


def settings(**more: Any) -> TrainSettings:
    values: dict[str, Any] = {
        "seed": 0,
        "test_every": 8,
        "checkpoint_every_s": 0.5,
        "ssim_weight": 0.2,
        "width": WIDTH,
        "steps": 400,
        "cap": 800,
        "sh_degree": 3,
    }
    return TrainSettings(**(values | more))


@pytest.mark.parametrize(
    "learned",
    [{}, {"strategy": "mcmc"}, {"strategy": "default"}, {"exposure": True}, {"medium": True}],
    ids=["budget", "mcmc", "default", "exposure", "water"],
)
def test_training_on_the_gpu_improves_and_reports_its_memory(
    learned: dict[str, Any], tmp_path: Path
) -> None:
    backend = cuda_backend()
    data, plan = dataset(backend, scene()), settings(**learned)
    trainer = Trainer(data, plan, backend, checkpoint=tmp_path / "c.pt", warn=print)
    progress: list[Progress] = []
    result = trainer.run(progress.append)
    assert result.quality.psnr > 25.0
    assert result.peak_vram_mib is not None and result.peak_vram_mib > 1.0
    assert result.gaussians > 700
    again = Trainer(data, plan, backend, checkpoint=tmp_path / "c.pt", warn=print)
    assert again.run(progress.append).resumed_from == 400


def test_out_of_memory_a_smaller_plan_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    """By an artificial limit: of the memory that one process may have."""
    backend = cuda_backend()
    truth = scene(3000)
    torch.cuda.empty_cache()
    limit_mib = torch.cuda.memory_reserved() / 2**20 + 400
    total_mib = torch.cuda.mem_get_info()[1] / 2**20
    large = settings(steps=400, cap=1_000_000, width=600, checkpoint_every_s=0.0)
    small = settings(steps=400, cap=20_000, width=300, checkpoint_every_s=0.0)
    data = dataset(backend, truth, width=600), dataset(backend, truth, width=300)
    torch.cuda.set_per_process_memory_fraction(limit_mib / total_mib)
    said: list[str] = []
    try:
        with pytest.raises(torch.OutOfMemoryError):
            Trainer(data[0], large, backend, checkpoint=tmp_path / "c.pt", warn=said.append).run(
                lambda _: None
            )
        torch.cuda.empty_cache()
        trainer = Trainer(data[1], small, backend, checkpoint=tmp_path / "c.pt", warn=said.append)
        result = trainer.run(lambda _: None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert result.resumed_from > 0 and result.gaussians <= 20_000
    assert any("at most 20000 gaussians instead of 1000000" in line for line in said)


def test_gsplats_own_trainer_is_there_to_compare_with() -> None:
    backend = cuda_backend()
    outcome = simple_trainer(dataset(backend, scene()), backend, steps=700)
    assert outcome.quality.psnr > 20.0 and outcome.seconds > 0.0
