"""Has the CPU kernels compiled by a process of their own, so that training only ever loads them.

numba keeps two versions of a parallel function: the one the compiling process runs, and the one it
caches, which was optimised once more after linking. With fastmath they round differently, and a
training that was killed in the process that compiled would not resume bit-identically.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import llvmlite.binding
import numba
import torch

_COMPILE_S = 600.0
_KERNEL_MODULES = ("tile_kernels", "ssim", "compiled")


def ensure_cached() -> None:
    """Returns at once when they are cached for this source, numba and CPU. When the cache cannot
    be written, every process compiles for itself, which is slower but also always the same."""
    from worker_agent.training.tile_kernels import composite

    directory = Path(composite.stats.cache_path)  # type: ignore[attr-defined]
    marker = directory / f"kernels-{_fingerprint()}.cached"
    if marker.exists() and any(directory.glob("tile_kernels.composite-*.nbi")):
        return
    done = subprocess.run(
        [sys.executable, "-m", "worker_agent.training.kernel_cache"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_COMPILE_S,
        check=False,
    )
    if done.returncode != 0:
        print(f"kernels not compiled ahead: {done.stderr.strip()[-400:]}", file=sys.stderr)
    elif any(directory.glob("tile_kernels.composite-*.nbi")):
        marker.touch()


def _fingerprint() -> str:
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.binding.get_host_cpu_name()}".encode())
    for name in _KERNEL_MODULES:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()[:16]


def _compile() -> None:
    """One tiny step through every kernel, with the array types that training uses."""
    from worker_agent.training.rasterize_cpu import rasterization
    from worker_agent.training.ssim import ssim

    count = 4
    means = torch.tensor([[0.0, 0.0, 2.0]]).repeat(count, 1).requires_grad_()
    image, _, _ = rasterization(
        means,
        torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(count, 1),
        torch.full((count, 3), 0.2),
        torch.full((count,), 0.5),
        torch.zeros(count, 1, 3),
        torch.eye(4)[None],
        torch.tensor([[[16.0, 0.0, 8.0], [0.0, 16.0, 8.0], [0.0, 0.0, 1.0]]]),
        16,
        16,
        sh_degree=0,
        packed=False,
    )
    planes = image[0].permute(2, 0, 1).contiguous()
    loss = ssim(planes, torch.zeros_like(planes)) + image.mean()
    torch.autograd.backward([loss])


if __name__ == "__main__":
    _compile()
