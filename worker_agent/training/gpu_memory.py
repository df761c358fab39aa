"""How many gaussians the memory of a GPU takes.

gsplat's published peaks are 1.98, 3.43 and 4.99 GB for one, two and three million gaussians
(gsplat, docs/source/tests/eval.rst), which is what the dispatcher starts from, too.
"""

from __future__ import annotations

MIB_PER_MILLION = 1500.0
MIB_BESIDE = 500.0  # images of one view, the allocator's reserve
OWN_CONTEXT_MIB = 512.0  # at most what this process holds by now: part of the promise
LEAST = 100  # gaussians; the least that settings can ask for


def fitting(cap: int, free_mib: float, promised_mib: float) -> int:
    """The cap for a GPU with `free_mib` free, now that CUDA runs in this process.

    `promised_mib` is what the dispatcher reserved for `cap` gaussians; it has learned that from
    runs, so where as much is free the plan stands. Where less is (another program took it), or
    nothing was promised (0), the published peaks say how many fit.
    """
    if promised_mib and free_mib + OWN_CONTEXT_MIB >= promised_mib:
        return cap
    fits = int(max(0.0, free_mib - MIB_BESIDE) / MIB_PER_MILLION * 1e6)
    return max(min(LEAST, cap), min(cap, fits))
