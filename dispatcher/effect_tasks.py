"""What each effect of a transition is in the world: which coroutine, and what it waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from dispatcher.core import effects as fx
from dispatcher.core.effects import Effect
from dispatcher.core.events import Event
from dispatcher.core.model import Job
from dispatcher.effects import Effects
from dispatcher.tasks import Tasks

Work = Callable[[], Coroutine[Any, Any, Event]]


class Performing:
    """`plan` makes the stitches that an acquisition can have now."""

    def __init__(
        self, effects: Effects, tasks: Tasks, plan: Callable[[str], Coroutine[Any, Any, None]]
    ) -> None:
        self._effects = effects
        self._tasks = tasks
        self._plan = plan
        self._starts: dict[str, asyncio.Task[None]] = {}
        self._copies: dict[str, asyncio.Task[None]] = {}
        self._clearing: dict[tuple[str, str], asyncio.Task[None]] = {}  # job, host

    def plan(self, acquisition: str) -> None:
        self._tasks.serve(self._plan(acquisition))

    def perform(self, job: Job, effect: Effect, *, stimulus: str) -> None:
        spawn, effects = self._tasks.spawn, self._effects
        match effect:
            case fx.TransferInputs():
                bring = partial(effects.transfer_inputs, job, effect.host, stimulus)
                self._copy(job, self._once_cleared(job, effect.host, bring))
            case fx.HandOver():
                hand_over = effects.handoff.hand_over
                bring = partial(hand_over, job, effect.host, effect.source, stimulus)
                self._copy(job, self._once_cleared(job, effect.host, bring))
            case fx.StartAttempt():
                self._starts[job.id] = spawn(job, effects.start_attempt(job, stimulus))
            case fx.FollowAttempt():
                self._tasks.serve(effects.follow_attempt(job, stimulus))
            case fx.CancelAttempt():
                spawn(job, effects.cancel_attempt(job, stimulus))
            case fx.ReclaimInputs():
                clear = partial(effects.reclaim_inputs, job, effect.host, stimulus)
                self._clear(job, effect.host, clear)
            case fx.ReclaimLeftovers():
                clear = partial(effects.reclaim_leftovers, job, effect.host, stimulus)
                self._clear(job, effect.host, clear)
            case fx.ReclaimMade():
                clear = partial(effects.reclaim_made, job, effect.host, effect.kinds, stimulus)
                self._clear(job, effect.host, clear)
            case fx.CollectResults():
                self._copy(job, effects.collect_results(job, effect.host, stimulus))
            case fx.PlanStitches():
                self.plan(effect.acquisition)
            case _:
                raise TypeError(f"no way to perform {effect}")

    def cancel_copy(self, job: str) -> None:
        """A transfer is the one effect that a cancel ends here instead of on the host."""
        copy = self._copies.pop(job, None)
        if copy is not None:
            copy.cancel()

    def cancel_start(self, job: str) -> None:
        """Nothing may start the attempt later."""
        start = self._starts.pop(job, None)
        if start is not None:
            start.cancel()

    def _copy(self, job: Job, work: Coroutine[Any, Any, Event]) -> None:
        self._copies[job.id] = self._tasks.spawn(job, work)

    def _clear(self, job: Job, host: str, work: Work) -> None:
        clearing = self._tasks.spawn(job, self._once_cleared(job, host, work))
        self._clearing[job.id, host] = clearing

    def _once_cleared(self, job: Job, host: str, work: Work) -> Coroutine[Any, Any, Event]:
        """A job that comes back to a host it left waits until its files are removed there: they
        must not vanish under the new copy."""
        clearing = self._clearing.get((job.id, host))

        async def wait_and_work() -> Event:
            if clearing is not None:
                await asyncio.wait([clearing])
            return await work()

        return wait_and_work()
