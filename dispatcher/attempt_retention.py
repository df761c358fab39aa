"""Has hosts remove the records of attempts that ended long ago; what went is in the event log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from dispatcher.core.model import TERMINAL
from dispatcher.errors import HostError
from dispatcher.fleet import Fleet
from dispatcher.store.base import Store
from worker_agent.protocol import PruneReport

log = logging.getLogger("cosma")

PRUNED = "attempts_pruned"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRetention:
    fleet: Fleet
    store: Store
    epoch: int
    keep_s: float

    async def run(self, every_s: float, _changed: Callable[[], None]) -> None:
        """For ever, beside a dispatcher."""
        while True:
            await asyncio.sleep(every_s)
            for state in self.fleet.states:
                if state.reachable:
                    await self.host(state.host.name)

    async def host(self, name: str) -> None:
        """What cannot be done now is done the next time."""
        executor = self.fleet.executor(name)
        try:
            done = await executor.prune((), self.keep_s, epoch=self.epoch)
            await self._tell(name, done)
            if over := await self._over(name, done.waiting):
                done = await executor.prune(over, self.keep_s, epoch=self.epoch)
                await self._tell(name, done)
        except HostError as error:
            log.info("%s: old attempts stay for now: %s", name, error.line)

    async def _over(self, host: str, waiting: tuple[str, ...]) -> tuple[str, ...]:
        """Those that will not go on there. Of one that is not in the database, nobody knows."""
        over = []
        for name in waiting:
            job = await self.store.job(name.rpartition("/")[2])
            if job is not None and (job.state in TERMINAL or job.host != host):
                over.append(name)
        return tuple(over)

    async def _tell(self, host: str, done: PruneReport) -> None:
        if done.attempts:
            payload = {
                "attempts": done.attempts,
                "removed_bytes": done.removed_bytes,
                "freed_bytes": done.freed_bytes,
            }
            await self.store.record_event(PRUNED, host=host, payload=payload)
