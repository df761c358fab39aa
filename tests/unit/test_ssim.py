"""SSIM on the CPU against the definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from worker_agent.training.ssim import WINDOW, ssim, ssim_by_convolution

pytestmark = pytest.mark.usefixtures("kernels")


def images(seed: int, height: int = 23, width: int = 31) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(3, height, width, generator=generator)
    noise = torch.rand(3, height, width, generator=generator)
    return first, 0.6 * first + 0.4 * noise


def by_definition(first: torch.Tensor, second: torch.Tensor) -> float:
    weights = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    edge = WINDOW // 2

    def blur(image: np.ndarray) -> np.ndarray:
        blurred = correlate1d(correlate1d(image, weights, axis=1), weights, axis=2)
        return blurred[:, edge:-edge, edge:-edge]

    one, two = first.double().numpy(), second.double().numpy()
    u, v = blur(one), blur(two)
    e11, e22, e12 = blur(one * one), blur(two * two), blur(one * two)
    top = (2 * u * v + 1e-4) * (2 * (e12 - u * v) + 9e-4)
    return float((top / ((u * u + v * v + 1e-4) * (e11 - u * u + e22 - v * v + 9e-4))).mean())


@pytest.mark.parametrize("seed", [1, 2])
def test_value_equals_the_definition(seed: int) -> None:
    first, second = images(seed)
    assert float(ssim(first, second)) == pytest.approx(by_definition(first, second), abs=1e-5)
    assert float(ssim_by_convolution(first.double(), second.double())) == pytest.approx(
        by_definition(first, second), abs=1e-6
    )


def test_gradient_equals_float64_autograd() -> None:
    first, second = images(3)
    mine = first.clone().requires_grad_()
    (2.5 * ssim(mine, second)).backward()
    truth = first.double().requires_grad_()
    (2.5 * ssim_by_convolution(truth, second.double())).backward()
    assert mine.grad is not None and truth.grad is not None
    assert float((mine.grad - truth.grad).norm() / truth.grad.norm()) < 1e-4


def test_channels_last_views_are_read_correctly() -> None:
    first, second = images(4)
    interleaved = first.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert float(ssim(interleaved, second)) == float(ssim(first, second))


def test_an_image_is_similar_to_itself() -> None:
    first, _ = images(5)
    assert float(ssim(first, first)) == pytest.approx(1.0, abs=1e-6)


def test_an_image_smaller_than_the_window_is_refused() -> None:
    first, second = images(6, height=WINDOW - 1)
    with pytest.raises(ValueError, match="at least"):
        ssim(first, second)
