"""How far a job's transfer is stands in the database while it lasts: `cosma top` and `cosma jobs`
show it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from dispatcher.clock import Clock
from dispatcher.input_progress import Arriving
from dispatcher.store.base import Store, StoreError

log = logging.getLogger("cosma")

TELL_S = 1.0


async def _nothing() -> None:
    return


@asynccontextmanager
async def telling(
    store: Store,
    clock: Clock,
    job: str,
    arriving: Arriving,
    look: Callable[[], Awaitable[None]] = _nothing,
) -> AsyncIterator[None]:
    """`look` brings `arriving` up to date before each time it is told.

    What cannot be stored costs the transfer nothing: the operator's log has it, once for each.
    """

    async def tell() -> None:
        complained = False
        while True:
            await asyncio.sleep(TELL_S)
            await look()
            line = arriving.look(clock.monotonic())
            numbers = {"transfer": arriving.bytes, "of": arriving.total}
            try:
                await store.set_progress(job, 0.0, line, numbers, clock.now())
            except StoreError as error:
                if not complained:
                    log.warning("%s: how far its transfer is cannot be told: %s", job, error.line)
                complained = True

    arriving.look(clock.monotonic())
    task = asyncio.ensure_future(tell())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
