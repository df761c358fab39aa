"""Several copies at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

COPIES_AT_ONCE = 4  # of one job; a default sshd allows ten sessions a connection


async def at_once(works: Iterable[Coroutine[Any, Any, object]]) -> None:
    """All of them, a few at a time; the first failure ends the others and is raised."""
    limit = asyncio.Semaphore(COPIES_AT_ONCE)

    async def one(work: Coroutine[Any, Any, object]) -> None:
        async with limit:
            await work

    works = list(works)
    tasks = [asyncio.ensure_future(one(work)) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for work in works:
            work.close()  # those that had not begun
