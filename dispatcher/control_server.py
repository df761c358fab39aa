"""Answers what operators' commands ask of a running dispatcher, one request at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from dispatcher.clock import Clock
from dispatcher.core.events import AttemptFailed, Event
from dispatcher.core.machine import IllegalTransition, StaleEvent
from dispatcher.core.model import Job, Reason
from dispatcher.requests import ABANDON, DECISIONS, event_of_request, refused
from dispatcher.store.base import Store
from dispatcher.store.rows import Request


@dataclass(frozen=True, slots=True)
class Answering:
    """`transition` commits an event of a job; `abandon` sees to it that nothing starts the job's
    attempt later or goes on waiting for it; `plan` makes the stitches that an acquisition can have
    now."""

    store: Store
    clock: Clock
    jobs: Callable[[], Mapping[str, Job]]
    transition: Callable[[Job, Event], Awaitable[None]]
    abandon: Callable[[Job], Awaitable[None]]
    plan: Callable[[str], None]

    async def answer_all(self) -> None:
        for request in await self.store.pending_requests():
            ok, answer = await self._answer(request)
            await self.store.finish_request(request.id, ok=ok, answer=answer)
            if ok and request.kind in DECISIONS:
                self.plan(self.jobs()[request.job or ""].acquisition)

    async def _answer(self, request: Request) -> tuple[bool, str]:
        job = self.jobs().get(request.job or "")
        silent = {silence.host for silence in await self.store.silences()}
        answer = refused(request, job, silent=silent, at=self.clock.now())
        if job is None or answer:
            return False, answer
        if request.kind in DECISIONS:
            return True, "done"
        if request.kind == ABANDON:
            await self.abandon(job)
            event: Event = self._given_up(job, request)
        else:
            event = event_of_request(request, at=self.clock.now())
        try:
            await self.transition(self.jobs()[job.id], event)
        except (IllegalTransition, StaleEvent):
            return False, f"it has gone on meanwhile: cosma why {job.id}"
        return True, "done"

    def _given_up(self, job: Job, request: Request) -> AttemptFailed:
        return AttemptFailed(
            at=self.clock.now(),
            stimulus=f"request-{request.id}",
            attempt=job.attempt,
            reason=Reason.HOST_UNREACHABLE,
            message=f"{job.stage} on {job.host}: given up by the operator",
        )
