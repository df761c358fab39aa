"""Several copies at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

COPIES_AT_ONCE = 4  # of one job; a default sshd allows ten sessions a connection

T = TypeVar("T")


async def at_once(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All of them, a few at a time; their results in order. The first failure ends the
    others and is raised."""
    limit = asyncio.Semaphore(COPIES_AT_ONCE)

    async def one(work: Coroutine[Any, Any, T]) -> T:
        async with limit:
            return await work

    works = list(works)
    tasks = [asyncio.ensure_future(one(work)) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for work in works:
            work.close()  # those that had not begun
