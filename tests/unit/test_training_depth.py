"""Depth that is rendered, and what a depth map asks of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worker_agent.training.backend import Backend
from worker_agent.training.depth_prior import depth_loss, expected_depth
from worker_agent.training.rasterize_cpu import rasterization

pytestmark = pytest.mark.usefixtures("kernels")

CPU = Backend("cpu", torch.device("cpu"), "CPU", rasterization)
POSE, SIZE = torch.eye(4), (24, 16)
MATRIX = torch.tensor([[20.0, 0, 12], [0, 20.0, 8], [0, 0, 1]])


def wall(slope: float, depth: float = 2.0) -> dict[str, torch.nn.Parameter]:
    """Flat opaque gaussians that fill the view, `slope` deeper for each unit to the right."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 41), torch.linspace(-1.6, 1.6, 65), indexing="ij")
    means = torch.stack([x, y, depth + slope * x], dim=-1).reshape(-1, 3)
    count = len(means)
    values = {
        "means": means,
        "quats": torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        "scales": torch.tensor([0.04, 0.04, 1e-3]).log().repeat(count, 1),
        "opacities": torch.full((count,), 3.0),
    }
    return {name: torch.nn.Parameter(value) for name, value in values.items()}


def seen(slope: float) -> Tensor:
    """(H, W) depth of that plane along the rays through the pixels' centres."""
    right = (torch.arange(SIZE[0]) + 0.5 - 12) / 20
    return (2.0 / (1.0 - slope * right)).expand(SIZE[1], -1)


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_the_depth_of_a_plane_is_rendered(slope: float) -> None:
    depth, alpha = expected_depth(CPU, wall(slope), POSE, MATRIX, SIZE)
    assert depth.shape == alpha.shape == (16, 24)
    assert float(alpha.detach().min()) > 0.9
    # Gaussians that face the camera stand out of a sloping plane by half their width.
    assert float((depth / seen(slope) - 1).abs().max().detach()) < (0.03 if slope else 1e-4)


def test_nothing_is_asked_where_no_depth_is_known_or_nothing_is_drawn() -> None:
    depth, alpha = expected_depth(CPU, wall(0.0), POSE, MATRIX, SIZE)
    unknown = torch.zeros_like(depth)
    assert float(depth_loss(depth, alpha, unknown)) == 0.0
    assert float(depth_loss(depth, torch.zeros_like(alpha), unknown + 5.0)) == 0.0
    half = unknown.clone()
    half[:, :12] = 1.0  # one unit away, where the wall is two
    assert float(depth_loss(depth, alpha, half)) == pytest.approx(0.5, rel=0.01)


def test_training_on_depth_alone_moves_the_wall_to_where_the_map_says_it_is() -> None:
    parameters = wall(0.0)
    wanted = 1.0 / (1.25 * seen(0.2))
    optimiser = torch.optim.Adam([parameters["means"]], lr=0.03)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = depth_loss(*expected_depth(CPU, parameters, POSE, MATRIX, SIZE), wanted)
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 0.09
    assert losses[-1] < 0.2 * losses[0]
