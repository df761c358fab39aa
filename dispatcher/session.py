"""The live attempts of one host: followed over one session, renewed in one message.

Losing the link says nothing about the attempts. They stay as they are until the host answers
again, or until their lease has certainly run out there.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dispatcher.clock import Clock
from dispatcher.core.lease import may_requeue_at, renew_due
from dispatcher.core.model import AttemptFailed, Event, Reason, Stage
from dispatcher.errors import HostError
from dispatcher.executors.base import Follower
from dispatcher.fleet import Fleet
from dispatcher.outcome import event_of
from dispatcher.store.base import Store
from worker_agent.protocol import AttemptRef, AttemptStatus, FrameHeader, WatchRequest

log = logging.getLogger("cosma")

Post = Callable[[str, Event], None]

RENEW_TICK_S = 5.0
RETRY_FIRST_S = 1.0
RETRY_MOST_S = 30.0


@dataclass(slots=True)
class Watched:
    """One attempt of this host. Times are monotonic seconds."""

    job: str
    attempt: int
    stage: Stage
    run_dir: str
    lease_s: float
    stimulus: str
    renewed_at: float  # the last renewal that was sent, answered or not
    confirmed_at: float  # the last renewal that was answered


class HostSession:
    """`run` and `renew` are two coroutines of one host; both end only by being cancelled."""

    def __init__(
        self, host: str, fleet: Fleet, store: Store, clock: Clock, post: Post, epoch: int
    ) -> None:
        self._host = host
        self._fleet = fleet
        self._store = store
        self._clock = clock
        self._post = post
        self._epoch = epoch
        self._watched: dict[tuple[str, int], Watched] = {}
        self._follower: Follower | None = None
        self._wanted = asyncio.Event()

    async def watch(
        self, *, job: str, attempt: int, stage: Stage, run_dir: str, lease_s: float, stimulus: str
    ) -> None:
        """Follow one more attempt. Its end is posted as exactly one event."""
        now = self._clock.monotonic()
        watched = Watched(job, attempt, stage, run_dir, lease_s, stimulus, now, now)
        self._watched[(run_dir, attempt)] = watched
        self._wanted.set()
        if self._follower is not None:
            try:
                await self._request(self._follower, watched)
            except HostError as error:
                # The reader of the same session fails too, and watches everything anew.
                log.debug("%s: watch: %s", self._host, error.line)

    async def run(self) -> None:
        delay = RETRY_FIRST_S
        while True:
            await self._wanted.wait()
            try:
                self._follower = await self._fleet.executor(self._host).follow()
                for watched in list(self._watched.values()):
                    await self._request(self._follower, watched)
                delay = RETRY_FIRST_S
                async for header, body in self._follower:
                    await self._receive(header, body)
            except HostError as error:
                log.warning(
                    "%s: lost sight of %d attempt(s): %s",
                    self._host,
                    len(self._watched),
                    error.line,
                )
            finally:
                follower, self._follower = self._follower, None
                if follower is not None:
                    await follower.close()
            self._give_up_dead()
            await asyncio.sleep(delay)
            delay = min(RETRY_MOST_S, delay * 2)

    async def renew(self) -> None:
        """Only while the session stands: renewals into the dark would push the end of the lease
        away for ever."""
        while True:
            await asyncio.sleep(RENEW_TICK_S)
            now = self._clock.monotonic()
            due = [
                watched
                for watched in self._watched.values()
                if renew_due(watched.confirmed_at, watched.lease_s, now)
            ]
            if not due or self._follower is None:
                continue
            for watched in due:
                watched.renewed_at = now
            refs = [AttemptRef(run_dir=w.run_dir, attempt=w.attempt) for w in due]
            try:
                await self._fleet.executor(self._host).renew(refs, epoch=self._epoch)
            except HostError as error:
                log.warning("%s: leases not renewed: %s", self._host, error.line)
            else:
                for watched in due:
                    watched.confirmed_at = now
            await self._store.renewed([(w.job, w.attempt) for w in due], self._clock.now())

    async def _request(self, follower: Follower, watched: Watched) -> None:
        offsets = await self._store.attempt_offsets(watched.job, watched.attempt)
        await follower.watch(
            WatchRequest(
                run_dir=watched.run_dir,
                attempt=watched.attempt,
                events_from=offsets.events,
                log_from=offsets.log,
            )
        )

    async def _receive(self, header: FrameHeader, body: bytes) -> None:
        watched = self._watched.get((header.run_dir, header.attempt))
        if watched is None:
            return  # a heartbeat, or the rest of an attempt whose end is known
        end = header.offset + len(body)
        if header.kind == "events":
            await self._store.append_stream(
                watched.job, watched.attempt, events=_parse(body), events_to=end,
                events_from=header.offset,
            )  # fmt: skip
        elif header.kind == "log":
            await self._store.append_stream(
                watched.job, watched.attempt, log=body, log_to=end, log_from=header.offset
            )
        elif header.kind == "exit":
            await self._ended(watched, AttemptStatus.from_json(body))

    async def _ended(self, watched: Watched, status: AttemptStatus) -> None:
        del self._watched[(watched.run_dir, watched.attempt)]
        if not self._watched:
            self._wanted.clear()
        if status.exit is not None:
            await self._store.finish_attempt(watched.job, watched.attempt, status.exit)
        event = event_of(
            status,
            host=self._host,
            stage=watched.stage,
            at=self._clock.now(),
            stimulus=watched.stimulus,
        )
        self._post(watched.job, event)

    def _give_up_dead(self) -> None:
        now = self._clock.monotonic()
        for key, watched in list(self._watched.items()):
            if now < may_requeue_at(watched.renewed_at, watched.lease_s):
                continue
            del self._watched[key]
            self._post(
                watched.job,
                AttemptFailed(
                    at=self._clock.now(),
                    stimulus=watched.stimulus,
                    attempt=watched.attempt,
                    reason=Reason.HOST_UNREACHABLE,
                    message=f"{watched.stage} on {self._host}: the host has been silent for longer "
                    f"than the lease of {watched.lease_s:.0f} s",
                ),
            )


def _parse(body: bytes) -> list[dict[str, Any]]:
    """Lines of events.jsonl. A line that is no JSON object is kept as text, never dropped."""
    events: list[dict[str, Any]] = []
    for line in body.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            events.append(value)
        else:
            events.append({"kind": "unreadable", "text": line.decode(errors="replace")})
    return events
