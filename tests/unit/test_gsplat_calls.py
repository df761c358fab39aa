"""What we ask of gsplat, by gsplat's own Python (tests/gsplat_on_cpu.py): one trainer, two
rasterizers of one signature, the same pictures, gradients and steps."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import gsplat_on_cpu
from worker_agent.training.backend import Backend, RasterizerUnavailable, cuda_backend
from worker_agent.training.dataset import Dataset, Normalisation
from worker_agent.training.rasterize_cpu import rasterization
from worker_agent.training.settings import TrainSettings
from worker_agent.training.trainer import Progress, Trainer

pytestmark = pytest.mark.usefixtures("kernels")

CPU = Backend("cpu", torch.device("cpu"), "CPU", rasterization)
WIDTH, HEIGHT, COUNT = 32, 22, 60


@pytest.fixture(autouse=True)
def gsplat() -> Iterator[Backend]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as `cpu_backend` does: more only wait for one another
    with gsplat_on_cpu.kernels():
        yield gsplat_on_cpu.backend()
    torch.set_num_threads(threads)


def scene(seed: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    means = torch.rand(COUNT, 3, generator=generator) * torch.tensor([3.6, 2.4, 1.0])
    means[:4, 2] -= 3.0  # behind the camera
    return {
        "means": means + torch.tensor([-1.8, -1.2, 1.5]),
        "quats": torch.randn(COUNT, 4, generator=generator),
        "scales": 0.01 + 0.2 * torch.rand(COUNT, 3, generator=generator) ** 2,
        "opacities": torch.rand(COUNT, generator=generator),
        "colors": torch.rand(COUNT, 9, 3, generator=generator) - 0.2,
    }


def camera() -> tuple[Tensor, Tensor]:
    intrinsics = torch.tensor([[26.0, 0.0, 15.5], [0.0, 27.0, 11.5], [0.0, 0.0, 1.0]])
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([0.1, -0.05, 0.2])
    return pose[None], intrinsics[None]


def drawn(backend: Backend, degree: int | None) -> tuple[list[Tensor], dict[str, Any]]:
    """[image, alpha, gradients of what went in, absolute ones of the centres], meta."""
    values = scene() | {"backgrounds": torch.tensor([[0.1, 0.4, 0.7]])}
    if degree is None:
        values["colors"] = values["colors"][:, 0].clone()
    leaves = {name: value.requires_grad_() for name, value in values.items()}
    viewmats, intrinsics = camera()
    image, alpha, meta = backend.rasterize(
        **leaves, viewmats=viewmats, Ks=intrinsics, width=WIDTH, height=HEIGHT,
        sh_degree=degree, packed=False, absgrad=True,
    )  # fmt: skip
    ((image**2).sum() + alpha.sum()).backward()
    gradients = [leaf.grad for leaf in leaves.values()]
    assert all(gradient is not None for gradient in gradients)
    return [image.detach(), alpha.detach(), *gradients, meta["means2d"].absgrad], meta  # type: ignore[list-item]


@pytest.mark.parametrize("degree", [None, 0, 1, 2])
def test_both_draw_the_same_with_the_same_gradients(gsplat: Backend, degree: int | None) -> None:
    ours, our_meta = drawn(CPU, degree)
    theirs, their_meta = drawn(gsplat, degree)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape and mine.dtype == other.dtype
        assert float((mine - other).norm() / other.norm()) < 2e-6
    assert torch.equal(our_meta["radii"], their_meta["radii"])
    assert 10 < int((our_meta["radii"] > 0).all(-1).sum()) < COUNT
    # What gsplat's own strategies read.
    for key in ("width", "height", "n_cameras", "gaussian_ids"):
        assert our_meta[key] == their_meta[key]


def test_kernels_are_never_compiled_in_the_midst_of_a_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RasterizerUnavailable, match="not compiled on this host"):
        cuda_backend()


def dataset() -> Dataset:
    """Eight views of the scene; the points are off, so that there is something to learn."""
    truth, views = scene(), 8
    viewmats = torch.eye(4).repeat(views, 1, 1)
    viewmats[:, 0, 3] = torch.linspace(-0.2, 0.2, views)
    intrinsics = camera()[1].repeat(views, 1, 1)
    with torch.no_grad():
        images = [
            rasterization(**truth, viewmats=pose[None], Ks=intrinsics[:1], width=WIDTH,
                          height=HEIGHT, sh_degree=2)[0][0]
            for pose in viewmats
        ]  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    points = truth["means"] + 0.03 * torch.randn(COUNT, 3, generator=generator)
    return Dataset(
        names=tuple(f"f{view:06d}.jpg" for view in range(views)),
        images=(torch.stack(images).clamp(0, 1) * 255).to(torch.uint8),
        viewmats=viewmats,
        intrinsics=intrinsics,
        train=tuple(view for view in range(views) if view != 4),
        test=(4,),
        points=points.numpy(),
        colors=np.full((COUNT, 3), 0.5, np.float32),
        normalisation=Normalisation(1.0, (0.0, 0.0, 0.0)),
        masks=torch.ones(views, HEIGHT, WIDTH, dtype=torch.bool),
        disparities=torch.full((views, HEIGHT // 2, WIDTH // 2), 0.5),
    )


def settings(steps: int, **more: Any) -> TrainSettings:
    values: dict[str, Any] = {
        "seed": 0, "test_every": 8, "checkpoint_every_s": 60.0, "ssim_weight": 0.2,
        "width": WIDTH, "steps": steps, "cap": 120, "sh_degree": 2,
    }  # fmt: skip
    return TrainSettings(**(values | more))


@pytest.mark.parametrize(
    "learned",
    [
        {},
        {"strategy": "mcmc"},
        {"strategy": "default"},
        {"exposure": True, "medium": True, "depth_weight": 0.1},
    ],
    ids=["budget", "mcmc", "default", "all that is learned"],
)
def test_both_train_alike(gsplat: Backend, learned: dict[str, Any], tmp_path: Path) -> None:
    """Closely until gaussians are divided, at step 25: there last digits decide which."""
    data, losses, results = dataset(), [], []
    for number, backend in enumerate((CPU, gsplat)):
        trainer = Trainer(
            data, settings(50, **learned), backend, checkpoint=tmp_path / f"{number}", warn=print
        )
        seen: list[Progress] = []
        results.append(trainer.run(seen.append))
        losses.append([one.loss for one in seen])
    assert losses[1][:2] == pytest.approx(losses[0][:2], rel=1e-3)
    assert losses[0][-1] < 0.9 * losses[0][0] and losses[1][-1] < 0.9 * losses[1][0]
    assert results[0].gaussians > 110
    assert results[1].gaussians == pytest.approx(results[0].gaussians, abs=3)
    assert results[1].quality.psnr == pytest.approx(results[0].quality.psnr, abs=0.5)
