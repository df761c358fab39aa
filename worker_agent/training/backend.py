"""Which rasterizer trains: gsplat on an NVIDIA GPU, the one of this package on a CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import torch
from torch import Tensor

Rasterize = Callable[..., tuple[Tensor, Tensor, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Backend:
    """`rasterize` has gsplat's signature; `name` is the section of the configuration."""

    name: str  # "cuda" | "cpu"
    device: torch.device
    description: str
    rasterize: Rasterize


def out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory was full. Where it already is at a library's or the driver's own first
    wish, the error is a plain RuntimeError that says so in words of theirs."""
    text = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "CUDA error: out of memory" in text
        or "_ALLOC_FAILED" in text  # of cuBLAS, cuSOLVER and cuDNN: their workspace
    )


def cuda_usable() -> bool:
    """Whether this process can see an NVIDIA GPU."""
    return bool(torch.cuda.is_available())


def cpu_backend(threads: int) -> Backend:
    """The numba rasterizer on at most `threads` threads.

    torch stays on one thread: its own pool only spins beside numba's for tensors this small.
    """
    from worker_agent.training.kernel_cache import ensure_cached
    from worker_agent.training.rasterize_cpu import rasterization

    ensure_cached()
    torch.set_num_threads(1)
    # The other layers wait for work by spinning, which nearly doubles the CPU time on a host that
    # also extracts frames. Only one thread of this process ever calls the kernels.
    numba.config.THREADING_LAYER = "workqueue"
    used = max(1, min(threads, numba.config.NUMBA_NUM_THREADS))
    numba.set_num_threads(used)
    return Backend("cpu", torch.device("cpu"), f"CPU, {used} threads", rasterization)


class RasterizerUnavailable(RuntimeError):
    """gsplat is there but cannot render; the text says why in one line."""


def cuda_backend() -> Backend:
    """gsplat on the first visible GPU, proven by rendering one gaussian.

    Never has gsplat compile its kernels: that takes minutes and gigabytes, and two at once disturb
    one another; `gsplat_kernels` does it before. Raises RasterizerUnavailable, and
    torch.OutOfMemoryError.
    """
    device = torch.device("cuda", 0)
    try:
        if importlib.util.find_spec("gsplat.csrc") is None:
            raise RasterizerUnavailable("gsplat's CUDA kernels are not compiled on this host")
        from gsplat import rasterization

        one = torch.ones(1, device=device)
        image, _, _ = rasterization(
            means=torch.tensor([[0.0, 0.0, 2.0]], device=device),
            quats=torch.tensor([[1.0, 0.0, 0.0, 0.0]], device=device),
            scales=0.2 * one.expand(1, 3),
            opacities=0.9 * one,
            colors=one.expand(1, 3),
            viewmats=torch.eye(4, device=device)[None],
            Ks=torch.tensor([[[16.0, 0, 8], [0, 16.0, 8], [0, 0, 1]]], device=device),
            width=16,
            height=16,
            packed=False,
        )
        if not float(image.max()) > 0.5:
            raise RasterizerUnavailable("gsplat rendered nothing where a gaussian is")
    except (torch.OutOfMemoryError, RasterizerUnavailable):
        raise
    except Exception as error:  # a failed build shows in many kinds of exception
        if out_of_memory(error):
            raise torch.OutOfMemoryError(str(error)) from None
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RasterizerUnavailable(f"gsplat cannot render on this GPU: {text}") from None
    return Backend("cuda", device, torch.cuda.get_device_name(0), rasterization)
