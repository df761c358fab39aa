"""Keeps what is held against hosts and GPUs: the operator's cordons and the circuit breakers.

The database is the truth, so that a command of another process and a restart both count; the fleet
holds the copy that placement reads.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from dispatcher.clock import Clock
from dispatcher.core import breaker as b
from dispatcher.core.breaker import Breaker, Limits, Position
from dispatcher.core.events import AttemptFailed
from dispatcher.core.model import Job, Layer, Step
from dispatcher.errors import HostError, TransportError
from dispatcher.fleet import Fleet
from dispatcher.store.base import Store

log = logging.getLogger("cosma")


class Quarantines:
    """One instance for each dispatcher; all methods run in its event loop."""

    def __init__(
        self, store: Store, fleet: Fleet, clock: Clock, limits: Limits | None = None
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._clock = clock
        self._limits = limits or Limits()
        self._lock = asyncio.Lock()  # one change of a breaker at a time, from reading to writing
        self._fresh = True

    async def refresh(self) -> bool:
        """Read what the database says; True when it differs from what the fleet knew."""
        async with self._lock:
            cordons, breakers = await self._store.cordons(), await self._store.breakers()
            if self._fresh:  # tests that the last dispatcher ran have ended with it
                for key, one in breakers.items():
                    breakers[key] = b.interrupted(one)
                self._fresh = False
            changed = (cordons, breakers) != (self._fleet.cordons, self._fleet.breakers)
            self._fleet.cordons, self._fleet.breakers = cordons, breakers
            return changed

    async def judge(self, job: Job, event: AttemptFailed) -> AttemptFailed:
        """Count the failure against its host or GPU; with that one's breaker open, `event` says
        that the place is to blame."""
        if event.attempt != job.attempt or job.reservation is None or job.step is Step.CANCEL:
            return event
        if not b.counts(event.reason, await self._ran_s(job, event), self._limits):
            return event
        key, host, gpu = b.subject(job)
        async with self._lock:
            before = self._fleet.breakers.get(key) or Breaker(key=key, host=host, gpu=gpu)
            after = b.after_failure(before, job, event, self._limits)
            await self._keep(before, after)
        if after.position is Position.CLOSED:
            return event
        return replace(event, blame=Layer.GPU if gpu else Layer.HOST)

    async def _ran_s(self, job: Job, event: AttemptFailed) -> float:
        for attempt in await self._store.attempts(job.id):
            if attempt.attempt == event.attempt:
                return event.at - (attempt.started_at or attempt.committed_at)
        return 0.0

    def due(self) -> list[Breaker]:
        """Those whose self-test may run now."""
        now = self._clock.now()
        return [one for one in self._fleet.breakers.values() if b.due(one, now)]

    async def test(self, key: str) -> None:
        """Run the self-test and let the host or GPU in again, or keep it away for longer."""
        async with self._lock:
            before = self._fleet.breakers.get(key)
            if before is None or not b.due(before, self._clock.now()):
                return
            testing = b.begin_test(before)
            await self._keep(before, testing)
        try:
            ok, said = await self._run(testing)
        except asyncio.CancelledError:  # the dispatcher ends: the next one runs it again
            await self._store.save_breaker(b.interrupted(testing))
            raise
        async with self._lock:
            current = (await self._store.breakers()).get(key)
            if current is None:  # the operator lifted it meanwhile
                return
            after = b.after_test(current, ok, said, self._clock.now(), self._limits)
            await self._keep(current, after)
        await self._store.record_event(
            "self_tested", host=testing.host, payload={"key": key, "ok": ok, "said": said}
        )

    async def _run(self, breaker: Breaker) -> tuple[bool | None, str]:
        try:
            executor = self._fleet.executor(breaker.host)
            report = await executor.selftest(breaker.gpu, "cuda" if breaker.gpu else "cpu")
        except TransportError as error:
            return None, error.line
        except HostError as error:
            return False, error.line
        wrong = [f"{check.name}: {check.message}" for check in report.checks if not check.ok]
        return report.ok, "; ".join(wrong)

    async def _keep(self, before: Breaker, after: Breaker) -> None:
        if after == before:
            return
        await self._store.save_breaker(after)
        self._fleet.breakers = {**self._fleet.breakers, after.key: after}
        if after.position is before.position:
            return
        held = b.quarantine(after)
        log.warning("%s: %s", after.key, held.line if held else "its self-test passed: back again")
        await self._store.record_event(
            f"breaker_{after.position}",
            host=after.host,
            payload={"key": after.key, "why": after.why, "until": after.until},
        )
