"""Structural similarity with its gradient: numba on the CPU, convolutions on CUDA.

Wang et al. 2004 with the 11 x 11 gaussian window of standard deviation 1.5, constants for images
in [0, 1], valid windows only, averaged over windows and channels.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from worker_agent.training.compiled import compiled

WINDOW = 11
_TAIL = WINDOW - 1
_C1, _C2 = np.float32(0.01**2), np.float32(0.03**2)
_ONE, _TWO, _ZERO = np.float32(1.0), np.float32(2.0), np.float32(0.0)

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


def _window() -> F32:
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * 1.5**2))
    return np.asarray(weights / weights.sum(), np.float32)


_WEIGHTS = _window()


@compiled(nogil=True, cache=True, fastmath=True)
def _blur(source: Any, scratch: Any, target: Any, weights: Any) -> None:
    """target (H - 10, W - 10) = valid separable blur of source (H, W)."""
    height, width = target.shape
    for y in range(source.shape[0]):
        for x in range(width):
            scratch[y, x] = _ZERO
        for k in range(WINDOW):
            for x in range(width):
                scratch[y, x] += weights[k] * source[y, x + k]
    for y in range(height):
        target[y] = _ZERO
        for k in range(WINDOW):
            for x in range(width):
                target[y, x] += weights[k] * scratch[y + k, x]


@compiled(nogil=True, cache=True, fastmath=True)
def _spread(source: Any, scratch: Any, target: Any, weights: Any) -> None:
    """The adjoint of `_blur`: source (H - 10, W - 10) into target (H, W)."""
    height, width = source.shape
    scratch[:] = _ZERO
    for y in range(height):
        for k in range(WINDOW):
            for x in range(width):
                scratch[y + k, x] += weights[k] * source[y, x]
    target[:] = _ZERO
    for y in range(target.shape[0]):
        for k in range(WINDOW):
            for x in range(width):
                target[y, x + k] += weights[k] * scratch[y, x]


@compiled(nogil=True, cache=True, fastmath=True)
def _multiply(first: Any, second: Any, target: Any) -> None:
    for y in range(target.shape[0]):
        for x in range(target.shape[1]):
            target[y, x] = first[y, x] * second[y, x]


@compiled(nogil=True, cache=True, fastmath=True)
def _channel(one: F32, two: F32, weights: F32, share: Any, target: F32) -> Any:
    """SSIM of one channel (H, W); target (H, W) = share times its gradient by `one`.

    With window means u, v, and moments e11, e22, e12, S = a1 a2 / (b1 b2): the gradient is the
    adjoint blur of dS/du, plus 2 one times that of dS/de11, plus two times that of dS/de12.
    """
    full_height, full_width = one.shape
    height, width = full_height - _TAIL, full_width - _TAIL
    scratch = np.empty((full_height, full_width), np.float32)
    product = np.empty((full_height, full_width), np.float32)
    mean1 = np.empty((height, width), np.float32)
    mean2 = np.empty((height, width), np.float32)
    e11 = np.empty((height, width), np.float32)
    e22 = np.empty((height, width), np.float32)
    e12 = np.empty((height, width), np.float32)
    _blur(one, scratch, mean1, weights)
    _blur(two, scratch, mean2, weights)
    _multiply(one, one, product)
    _blur(product, scratch, e11, weights)
    _multiply(two, two, product)
    _blur(product, scratch, e22, weights)
    _multiply(one, two, product)
    _blur(product, scratch, e12, weights)
    total = 0.0
    for y in range(height):
        for x in range(width):
            u, v = mean1[y, x], mean2[y, x]
            a1 = _TWO * u * v + _C1
            a2 = _TWO * (e12[y, x] - u * v) + _C2
            b1 = u * u + v * v + _C1
            b2 = e11[y, x] - u * u + e22[y, x] - v * v + _C2
            inverse = _ONE / (b1 * b2)
            similarity = a1 * a2 * inverse
            total += similarity
            mean1[y, x] = share * (
                _TWO * v * (a2 - a1) * inverse - similarity * _TWO * u * (_ONE / b1 - _ONE / b2)
            )
            e11[y, x] = -share * similarity / b2
            e12[y, x] = share * _TWO * a1 * inverse
    _spread(mean1, scratch, target, weights)
    _spread(e11, scratch, product, weights)
    for y in range(full_height):
        for x in range(full_width):
            target[y, x] += _TWO * one[y, x] * product[y, x]
    _spread(e12, scratch, product, weights)
    for y in range(full_height):
        for x in range(full_width):
            target[y, x] += two[y, x] * product[y, x]
    return total / (height * width)


@compiled(parallel=True, nogil=True, cache=True)
def _similarity(
    first: F32, second: F32, weights: F32, share: Any, gradient: F32, values: F64
) -> None:
    """values[c] = SSIM of channel c; gradient (C, H, W) = d mean(values) / d first."""
    for channel in numba.prange(first.shape[0]):
        values[channel] = _channel(
            first[channel], second[channel], weights, share, gradient[channel]
        )


class _Ssim(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        one = first.detach().contiguous().numpy()
        gradient, values = np.empty_like(one), np.empty(one.shape[0])
        windows = one.shape[0] * (one.shape[1] - _TAIL) * (one.shape[2] - _TAIL)
        two = second.detach().contiguous().numpy()
        _similarity(one, two, _WEIGHTS, np.float32(1.0 / windows), gradient, values)
        ctx.gradient = torch.from_numpy(gradient)
        return torch.tensor(values.mean(), dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient * upstream, None


@cache
def _kernel(channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(C, 1, 1, 11): the window is the product of two of these, a fifth of the work."""
    weights = torch.from_numpy(_WEIGHTS).to(device, dtype)
    return weights.expand(channels, 1, 1, WINDOW).contiguous()


def ssim_by_convolution(first: Tensor, second: Tensor) -> Tensor:
    """SSIM of (C, H, W) images on any device and dtype, differentiable in both arguments."""
    channels = first.shape[0]
    kernel = _kernel(channels, first.device, first.dtype)
    stack = torch.stack((first, second, first * first, second * second, first * second))
    rows = torch.nn.functional.conv2d(stack, kernel, groups=channels)
    u, v, e11, e22, e12 = torch.nn.functional.conv2d(rows, kernel.mT, groups=channels)
    c1, c2 = 0.01**2, 0.03**2
    numerator = (2 * u * v + c1) * (2 * (e12 - u * v) + c2)
    similarity: Tensor = numerator / ((u * u + v * v + c1) * (e11 - u * u + e22 - v * v + c2))
    return similarity.mean()


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """SSIM of two (3, H, W) float32 images in [0, 1], a scalar; gradients flow into `first`.

    Raises ValueError when an image is smaller than the window.
    """
    if min(first.shape[-2:]) < WINDOW:
        raise ValueError(f"SSIM needs at least {WINDOW} x {WINDOW} pixels, got {first.shape[-2:]}")
    if first.device.type == "cpu":
        similarity: Tensor = _Ssim.apply(first, second)  # type: ignore[no-untyped-call]
        return similarity
    return ssim_by_convolution(first, second)
