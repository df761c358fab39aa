"""Which rasterizer trains: gsplat on an NVIDIA GPU, the one of this package on a CPU."""

from __future__ import annotations

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


def cuda_usable() -> bool:
    """Whether this process can see an NVIDIA GPU."""
    return bool(torch.cuda.is_available())


def cpu_backend(threads: int) -> Backend:
    """The numba rasterizer on at most `threads` threads.

    torch stays on one thread: its own pool only spins beside numba's for tensors this small.
    """
    from worker_agent.training.rasterize_cpu import rasterization

    torch.set_num_threads(1)
    used = max(1, min(threads, numba.config.NUMBA_NUM_THREADS))
    numba.set_num_threads(used)
    return Backend("cpu", torch.device("cpu"), f"CPU, {used} threads", rasterization)


def cuda_backend() -> Backend:
    """gsplat on the first visible GPU. Raises ImportError when gsplat cannot be loaded.

    Loaded here and not at the top, because importing gsplat may start compiling its kernels.
    """
    from gsplat import rasterization

    return Backend("cuda", torch.device("cuda", 0), torch.cuda.get_device_name(0), rasterization)
