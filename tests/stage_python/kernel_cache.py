"""Where numba keeps the kernels of a host whose agent has the source of this tree: in this tree.

The agent is unpacked anew on each host of each test, and compiling costs each of them 20 s of CPU.
A kernel is taken from there only for the very source it was made of, as numba compares.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba.core.caching import InTreeCacheLocator

TREE = Path(__file__).resolve().parents[2]
PACKAGE = "worker_agent"


class OfThisTree(InTreeCacheLocator):  # type: ignore[misc]
    """For NUMBA_CACHE_LOCATOR_CLASSES."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        super().__init__(function, file)
        parts = Path(file).parts
        inside = parts[len(parts) - parts[::-1].index(PACKAGE) - 1 : -1]
        self._cache_path = str(TREE.joinpath(*inside, "__pycache__"))
