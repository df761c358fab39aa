"""The dispatcher's asyncio tasks: effects, each of which ends in one event, and services.

A task that fails is a defect of ours: `defect` keeps it, and the dispatcher stops rather than go on
with half the truth; a restart recovers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from dispatcher.clock import Clock
from dispatcher.core.events import Event
from dispatcher.core.model import Job


class Tasks:
    """`post` takes each effect's event; `changed` is called whenever a task has ended."""

    def __init__(
        self, clock: Clock, post: Callable[[str, Event], None], changed: Callable[[], None]
    ) -> None:
        self._clock = clock
        self._post = post
        self._changed = changed
        self._effects: set[asyncio.Task[None]] = set()
        self._services: set[asyncio.Task[None]] = set()
        self.defect: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether an event is still to come."""
        return bool(self._effects)

    def spawn(self, job: Job, work: Coroutine[Any, Any, Event]) -> asyncio.Task[None]:
        """One effect, one event; a delayed effect waits for its job's `not_before`."""

        async def perform() -> None:
            try:
                if (delay := job.not_before - self._clock.now()) > 0:
                    await asyncio.sleep(delay)
                self._post(job.id, await work)
            finally:
                work.close()  # it may have been cancelled before it began

        return self._begin(self._effects, perform(), f"effect of {job.id}")

    def serve(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._begin(self._services, work, None)

    def _begin(
        self, kind: set[asyncio.Task[None]], work: Coroutine[Any, Any, None], name: str | None
    ) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        kind.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._effects.discard(task)
        self._services.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.defect = error
        self._changed()

    async def settle(self) -> None:
        """Until the services that run now have ended by themselves."""
        await asyncio.gather(*self._services)

    async def end(self) -> None:
        tasks = [*self._effects, *self._services]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
