"""Self-test of training: one gaussian, one pixel, one step whose result is known in closed form.

A gaussian whose centre projects onto a pixel's centre gives it opacity * colour there, and at d
pixels opacity * exp(-d^2 / 2 / (s^2 + 0.3)) of it (3D Gaussian Splatting, Kerbl et al. 2023; 0.3 is
gsplat's low-pass filter), s the projected scale.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import Tensor

from worker_agent.training.backend import RasterizerUnavailable, cpu_backend, cuda_backend

_OPACITY = 0.8
_COLOR = (0.9, 0.5, 0.2)
_TARGET = (0.1, 0.7, 0.4)
_FOCAL, _DEPTH, _SCALE = 50.0, 2.0, 0.04
_SIZE, _PIXEL, _BESIDE = 17, 8, 2
_RATE = 0.1
_TOLERANCE = 1e-3


def check() -> str:
    """What is wrong, in one line; "" when image, gradients and the loss after a step are right.
    On the GPU where one is visible, with the rasterizer that trains there."""
    cuda = bool(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if cuda and not torch.cuda.is_available():
        return f"torch {torch.__version__} cannot use the GPU: check driver and torch build"
    try:
        backend = cuda_backend() if cuda else cpu_backend(1)
    except RasterizerUnavailable as error:
        return str(error)
    color = torch.tensor([_COLOR], device=backend.device, requires_grad=True)
    opacity = torch.tensor([_OPACITY], device=backend.device, requires_grad=True)
    target = torch.tensor(_TARGET, device=backend.device)
    optimiser = torch.optim.SGD([color, opacity], lr=_RATE)

    image = _render(backend, color, opacity)
    loss = ((image[_PIXEL, _PIXEL] - target) ** 2).sum()
    torch.autograd.backward(loss)
    if color.grad is None or opacity.grad is None:
        return "the rasterizer gives no gradient"
    shown = image.detach()
    found = {
        "image": shown[_PIXEL, _PIXEL].tolist(),
        "falloff": [float(shown[_PIXEL, _PIXEL + _BESIDE, 0] / shown[_PIXEL, _PIXEL, 0])],
        "loss": [float(loss.detach())],
        "colour gradient": color.grad[0].tolist(),
        "opacity gradient": opacity.grad.tolist(),
    }
    optimiser.step()
    image = _render(backend, color, opacity).detach()
    found["loss after the step"] = [float(((image[_PIXEL, _PIXEL] - target) ** 2).sum())]
    for name, expected in known().items():
        wrong = [abs(a - b) for a, b in zip(found[name], expected, strict=True)]
        if not max(wrong) <= _TOLERANCE:  # a NaN is wrong as well
            return f"{name} is {found[name]}, expected {expected} (torch {torch.__version__})"
    return ""


def known() -> dict[str, list[float]]:
    pixel = [_OPACITY * c for c in _COLOR]
    error = [p - t for p, t in zip(pixel, _TARGET, strict=True)]
    color_gradient = [2 * e * _OPACITY for e in error]
    opacity_gradient = sum(2 * e * c for e, c in zip(error, _COLOR, strict=True))
    opacity = _OPACITY - _RATE * opacity_gradient
    color = [c - _RATE * g for c, g in zip(_COLOR, color_gradient, strict=True)]
    variance = (_FOCAL * _SCALE / _DEPTH) ** 2 + 0.3
    return {
        "image": pixel,
        "falloff": [math.exp(-(_BESIDE**2) / 2 / variance)],
        "loss": [sum(e * e for e in error)],
        "colour gradient": color_gradient,
        "opacity gradient": [opacity_gradient],
        "loss after the step": [
            sum((opacity * c - t) ** 2 for c, t in zip(color, _TARGET, strict=True))
        ],
    }


def _render(backend: Any, color: Tensor, opacity: Tensor) -> Tensor:
    """(size, size, 3)."""
    device = backend.device
    centre = _PIXEL + 0.5
    intrinsics = [[_FOCAL, 0.0, centre], [0.0, _FOCAL, centre], [0.0, 0.0, 1.0]]
    image, _, _ = backend.rasterize(
        means=torch.tensor([[0.0, 0.0, _DEPTH]], device=device),
        quats=torch.tensor([[1.0, 0.0, 0.0, 0.0]], device=device),
        scales=torch.full((1, 3), _SCALE, device=device),
        opacities=opacity,
        colors=color,
        viewmats=torch.eye(4, device=device)[None],
        Ks=torch.tensor([intrinsics], device=device),
        width=_SIZE,
        height=_SIZE,
        packed=False,
        absgrad=True,
    )
    found: Tensor = image[0]
    return found
