"""Training on half-size images first: what a view is at that size, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worker_agent.training.backend import Backend
from worker_agent.training.dataset import Dataset, Normalisation
from worker_agent.training.draw import draw
from worker_agent.training.rasterize_cpu import rasterization
from worker_agent.training.settings import TrainSettings
from worker_agent.training.trainer import Trainer
from worker_agent.training.views import Views

pytestmark = pytest.mark.usefixtures("kernels")

VIEWS, WIDTH, HEIGHT = 5, 80, 64


def dataset() -> Dataset:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(40, 3, generator=generator) - 0.5
    points[:, 2] += 1.5
    matrix = torch.tensor([[60.0, 0, 40], [0, 60, 32], [0, 0, 1]])
    masks = torch.ones(VIEWS, HEIGHT, WIDTH, dtype=torch.bool)
    masks[:, 0, 0] = False
    return Dataset(
        names=tuple(f"f{view:06d}.jpg" for view in range(VIEWS)),
        images=torch.randint(256, (VIEWS, HEIGHT, WIDTH, 3), generator=generator).to(torch.uint8),
        viewmats=torch.eye(4).repeat(VIEWS, 1, 1),
        intrinsics=matrix.repeat(VIEWS, 1, 1),
        train=(0, 1, 3, 4),
        test=(2,),
        points=points.numpy(),
        colors=np.full((40, 3), 0.5, np.float32),
        normalisation=Normalisation(1.0, (0.0, 0.0, 0.0)),
        masks=masks,
    )


def test_half_size_is_the_mean_of_four_pixels_seen_through_half_the_focal_length() -> None:
    data = dataset()
    views = Views(data, torch.device("cpu"))
    full = views.truth(1).reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean(dim=(1, 3))
    assert float((views.truth(1, 2) - full).abs().max()) <= 0.5 / 255 + 1e-6
    _, matrix, width, height = views.camera(1, 2)
    assert (width, height) == (WIDTH // 2, HEIGHT // 2)
    assert torch.equal(matrix, torch.tensor([[30.0, 0, 20], [0, 30, 16], [0, 0, 1]]))
    # A pixel counts where all that it covers is shown.
    shown = views.unmasked(torch.ones(HEIGHT // 2, WIDTH // 2, 3), torch.zeros(()), 1, 2)
    assert int((shown == 0).all(-1).sum()) == 1 and not shown[0, 0].any()


def test_the_first_steps_are_drawn_at_half_size_and_the_others_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, int]] = []

    def watched(*given: Any, **named: Any) -> Any:
        sizes.append(given[5])
        return draw(*given, **named)

    monkeypatch.setattr("worker_agent.training.trainer.draw", watched)
    settings = TrainSettings(
        seed=0, test_every=8, checkpoint_every_s=60.0, ssim_weight=0.2, width=WIDTH, steps=10,
        cap=60, sh_degree=1,
    )  # fmt: skip
    backend = Backend("cpu", torch.device("cpu"), "CPU", rasterization)
    Trainer(dataset(), settings, backend, checkpoint=tmp_path / "c.pt", warn=print).run(
        lambda _: None
    )
    half, full = (WIDTH // 2, HEIGHT // 2), (WIDTH, HEIGHT)
    assert sizes == 3 * [half] + 7 * [full] + [full]  # and the held-out view
