"""The live attempts of one host: followed over one session, renewed in one message.

Losing the link says nothing about the attempts. They stay as they are until the host answers
again, or until their lease has certainly run out there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass

from dispatcher.clock import Clock
from dispatcher.core.events import AttemptFailed, Event
from dispatcher.core.lease import may_requeue_at, renew_due
from dispatcher.core.model import Job, Reason, Stage
from dispatcher.errors import HostError
from dispatcher.executors.base import Follower
from dispatcher.executors.follow import parse_events
from dispatcher.fleet import Fleet
from dispatcher.leases import renewed_at
from dispatcher.outcome import event_of
from dispatcher.store.base import OffsetGap, Store
from dispatcher.store.rows import Lease, Offsets
from worker_agent.protocol import (
    AttemptRef,
    AttemptState,
    AttemptStatus,
    ExitRecord,
    FrameHeader,
    ProtocolError,
    WatchRequest,
)

log = logging.getLogger("cosma")

# Of an attempt that did well, what its host recorded of it: stored with the event of its end.
Record = ExitRecord | None
Post = Callable[[str, Event, Record], None]

RENEW_TICK_S = 5.0
# No call of the agent outlasts this: a renewal cannot arrive later than that after it was sent.
RENEW_CALL_S = 60.0
OPEN_S = 120.0  # for connecting, installing the agent and asking for everything anew
RETRY_FIRST_S = 0.05  # a session that was killed: the host is there
RETRY_MOST_S = 30.0
RESTART = "restart"  # the stimulus of what a restarted dispatcher takes up again


@dataclass(slots=True)
class Watched:
    """One attempt of this host. Times are monotonic seconds."""

    job: str
    acquisition: str
    attempt: int
    stage: Stage
    lease_s: float  # 0: none
    stimulus: str
    renewed_at: float  # no renewal can have arrived after this
    confirmed_at: float  # the last renewal that was answered
    absent: bool = False  # the host answers and knows nothing of it: not renewed any more
    # Since when it is being taken up again, after a restart or a loss; None: it is followed.
    reattach_since: float | None = None


class HostSession:
    """`run` and `renew` are two coroutines of one host; both end only by being cancelled.

    `found` is called whenever the host is heard again after a loss.
    """

    def __init__(
        self,
        host: str,
        fleet: Fleet,
        store: Store,
        clock: Clock,
        post: Post,
        epoch: int,
        found: Callable[[str], None],
    ) -> None:
        self._host = host
        self._fleet = fleet
        self._store = store
        self._clock = clock
        self._post = post
        self._epoch = epoch
        self._found = found
        self._watched: dict[tuple[str, int], Watched] = {}
        self._follower: Follower | None = None
        self._wanted = asyncio.Event()
        self._work_dir = ""
        self._heard_at = clock.now()
        self._silent = True  # nothing is known of it yet
        self._noted = True  # its silence may be written down: by the dispatcher before, too
        self._reached = asyncio.Event()
        self._delay = RETRY_FIRST_S

    async def watch(self, job: Job, stimulus: str, lease: Lease) -> None:
        """Follow one more attempt. Its end is posted as exactly one event."""
        if (job.id, job.attempt) in self._watched:
            return
        now = self._clock.monotonic()
        restarted = stimulus == RESTART
        self._watched[(job.id, job.attempt)] = watched = Watched(
            job=job.id,
            acquisition=job.acquisition,
            attempt=job.attempt,
            stage=job.stage,
            lease_s=lease.lease_s,
            stimulus=stimulus,
            renewed_at=renewed_at(lease, self._clock) if restarted else now,
            # How much of its lease is used up is not known: an earlier start may have arrived.
            confirmed_at=float("-inf"),
            reattach_since=now if restarted else None,
        )
        self._wanted.set()
        if self._follower is not None:
            try:
                # Of what this process just started nothing is stored yet.
                offsets = await self._stored(watched) if restarted else Offsets()
                await self._request(self._follower, watched, offsets)
            except HostError as error:
                # The reader of the same session fails too, and watches everything anew.
                log.debug("%s: watch: %s", self._host, error.line)

    async def run(self) -> None:
        while True:
            await self._wanted.wait()
            try:
                await self._follow()
            except TimeoutError:
                await self._lost(f"{self._host}: no session within {OPEN_S:g} s")
            except HostError as error:
                await self._lost(error.line)
            except OffsetGap as gap:
                log.warning("%s: watching anew: %s", self._host, gap.line)
            finally:
                current, self._follower = self._follower, None
                if current is not None:
                    await current.close()
            await self._give_up_dead()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._delay * random.uniform(0.5, 1.5)):
                    await self._reached.wait()
            self._delay = min(RETRY_MOST_S, self._delay * 2)
            for watched in self._watched.values():
                watched.reattach_since = self._clock.monotonic()

    async def _follow(self) -> None:
        """Until the session is lost."""
        try:
            async with asyncio.timeout(OPEN_S):
                follower = await self._open()
            async for header, body in follower:
                self._delay = RETRY_FIRST_S
                await self._hear()
                await self._receive(header, body)
        finally:
            self._reached.clear()  # before the loss

    def reached(self) -> None:
        """The host answers: a lost session is opened again now, however long it was to rest."""
        self._reached.set()

    async def _open(self) -> Follower:
        executor = self._fleet.executor(self._host)
        self._work_dir = await executor.work_dir()
        self._follower = follower = await executor.follow()
        for watched in list(self._watched.values()):
            await self._request(follower, watched, await self._stored(watched))
        return follower

    async def renew(self) -> None:
        """Only while the session stands: renewals into the dark would push the end of the lease
        away for ever. Written down before it is sent, as what was sent may arrive."""
        while True:
            await asyncio.sleep(RENEW_TICK_S)
            if any(watched.absent for watched in self._watched.values()):
                await self._give_up_dead()
            now = self._clock.monotonic()
            due = [
                watched
                for watched in self._watched.values()
                if not watched.absent and renew_due(watched.confirmed_at, watched.lease_s, now)
            ]
            if not due or self._follower is None:
                continue
            try:
                async with asyncio.timeout(RENEW_CALL_S):
                    await self._note(due, now + RENEW_CALL_S)
                    statuses = await self._fleet.executor(self._host).renew(
                        [self._ref(watched) for watched in due], epoch=self._epoch
                    )
            except TimeoutError:
                log.warning("%s: leases not renewed: no answer", self._host)
            except HostError as error:
                log.warning("%s: leases not renewed: %s", self._host, error.line)
            else:
                for watched, status in zip(due, statuses, strict=False):
                    watched.confirmed_at = now
                    watched.absent = status.state is AttemptState.NEVER_STARTED
            await self._note(due, self._clock.monotonic())

    async def _note(self, renewed: list[Watched], latest: float) -> None:
        for watched in renewed:
            watched.renewed_at = latest
        await self._store.renewed(
            [(w.job, w.attempt) for w in renewed],
            self._clock.now(),
            monotonic=latest,
            clock_boot=self._clock.boot(),
        )

    async def absent(self, job: str, attempt: int, *, rebooted: bool) -> None:
        """The host knows nothing of an attempt that was started there. After a reboot it is dead;
        else its directory may only be out of sight, and its lease must run out first."""
        watched = self._watched.get((job, attempt))
        if watched is None:
            return
        watched.absent = True
        if rebooted:
            await self._give_up(watched, Reason.HOST_REBOOTED, "the host was rebooted meanwhile")

    async def unanswered(self, why: str) -> None:
        """A start that may have arrived got no answer: its host is silent, though not followed."""
        self._silent = True
        await self._note_silence(why)

    async def abandon(self, job: str, attempt: int) -> None:
        """It is taken for dead: by the operator, or because it never came to life."""
        self._watched.pop((job, attempt), None)
        await self._rest()

    def _ref(self, watched: Watched) -> AttemptRef:
        run_dir = f"{self._work_dir}/{watched.acquisition}/{watched.job}"
        return AttemptRef(run_dir=run_dir, attempt=watched.attempt)

    async def _stored(self, watched: Watched) -> Offsets:
        return await self._store.attempt_offsets(watched.job, watched.attempt)

    async def _request(self, follower: Follower, watched: Watched, offsets: Offsets) -> None:
        await follower.watch(
            WatchRequest(
                run_dir=self._ref(watched).run_dir,
                attempt=watched.attempt,
                events_from=offsets.events,
                log_from=offsets.log,
            )
        )

    # --- what the host says ---

    async def _receive(self, header: FrameHeader, body: bytes) -> None:
        watched = self._watched.get((header.run_dir.rpartition("/")[2], header.attempt))
        if watched is None:
            return  # a heartbeat, or the rest of an attempt whose end is known
        if watched.reattach_since is not None:
            await self._reattached(watched, watched.reattach_since)
        if header.kind == "events":
            await self._keep_events(watched, header.offset, body)
        elif header.kind == "log":
            await self._store.append_stream(
                watched.job,
                watched.attempt,
                log=body,
                log_from=header.offset,
                log_to=header.offset + len(body),
            )
        elif header.kind == "exit":
            await self._ended(watched, body)

    async def _reattached(self, watched: Watched, since: float) -> None:
        watched.reattach_since = None
        seconds = self._clock.monotonic() - since
        log.debug(
            "%s: attempt %d of %s is followed again after %.2f s",
            self._host, watched.attempt, watched.job, seconds,
        )  # fmt: skip
        await self._store.record_event(
            "attempt_reattached",
            job=watched.job,
            attempt=watched.attempt,
            host=self._host,
            payload={"seconds": round(seconds, 4)},
        )

    async def _keep_events(self, watched: Watched, offset: int, body: bytes) -> None:
        end = offset + len(body)
        while True:
            events = parse_events(body[offset - end :])
            said = [str(e.get("message", "")) for e in events if e.get("kind") == "warning"]
            known = bool(said) and (await self._stored(watched)).events >= end
            try:
                await self._store.append_stream(
                    watched.job, watched.attempt, events=events, events_from=offset, events_to=end
                )
            except OffsetGap as gap:
                if not offset < gap.expected < end:
                    raise  # bytes are missing: a new session asks for them
                offset = gap.expected  # the first part had come already; it ends at a line's end
            else:
                break
        for line in () if known else said:
            stage = watched.stage.value
            log.warning("%s: %s on %s warns: %s", watched.job, stage, self._host, line)

    async def _ended(self, watched: Watched, body: bytes) -> None:
        try:
            status = AttemptStatus.from_json(body)
        except ProtocolError as error:
            why = f"its exit record cannot be read: {error}"
            await self._give_up(watched, Reason.AGENT_FAILED, why)
            return
        event = event_of(
            status, host=self._host, stage=watched.stage, at=self._clock.now(),
            stimulus=watched.stimulus,
        )  # fmt: skip
        record = status.exit
        if record is not None:
            if isinstance(event, AttemptFailed):  # what judges it reads the record
                await self._store.finish_attempt(watched.job, watched.attempt, record)
                record = None
            self._fleet.attempt_ended(self._host, watched.job, watched.attempt)
        # Only now: a failure above must leave it watched.
        self._watched.pop((watched.job, watched.attempt), None)
        self._post(watched.job, event, record)
        await self._rest()

    # --- silence ---

    async def _hear(self) -> None:
        self._heard_at = self._clock.now()
        if not self._silent:
            return
        self._silent = False
        self._found(self._host)
        if await self._end_silence():
            log.info("%s: heard again", self._host)
            await self._store.record_event("host_found", host=self._host)

    async def _lost(self, why: str) -> None:
        first, self._silent = not self._silent, True
        if not self._watched:
            log.debug("%s: %s", self._host, why)
            return
        log.warning("%s: lost sight of %d attempt(s): %s", self._host, len(self._watched), why)
        await self._note_silence(why)
        if first:
            await self._store.record_event(
                "host_silent",
                host=self._host,
                payload={"since": self._heard_at, "attempts": len(self._watched), "why": why},
            )

    async def _rest(self) -> None:
        """Nothing is at risk there any more, so its silence troubles nobody."""
        if not self._watched:
            self._wanted.clear()
            await self._end_silence()

    async def _note_silence(self, why: str) -> None:
        self._noted = True
        await self._store.set_silence(self._host, self._heard_at, why)

    async def _end_silence(self) -> bool:
        """True when it was silent."""
        noted, self._noted = self._noted, False
        return noted and await self._store.end_silence(self._host)

    async def _give_up_dead(self) -> None:
        now = self._clock.monotonic()
        for watched in list(self._watched.values()):
            if now < may_requeue_at(watched.renewed_at, watched.lease_s):
                continue
            if watched.absent:
                why = "the host knows nothing of it any more"
                await self._give_up(watched, Reason.ATTEMPT_VANISHED, why)
            else:
                why = (
                    f"the host has been silent for longer than its lease of {watched.lease_s:.0f} s"
                )
                await self._give_up(watched, Reason.HOST_UNREACHABLE, why)

    async def _give_up(self, watched: Watched, reason: Reason, why: str) -> None:
        self._watched.pop((watched.job, watched.attempt), None)
        given_up = AttemptFailed(
            at=self._clock.now(), stimulus=watched.stimulus, attempt=watched.attempt,
            reason=reason, message=f"{watched.stage} on {self._host}: {why}",
        )  # fmt: skip
        self._post(watched.job, given_up, None)
        await self._rest()
