"""Typed access to numba's compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[F], F]:
    """`numba.njit(**options)` that keeps the type of what it decorates."""
    return cast(Callable[[F], F], numba.njit(**options))
