"""What the dispatcher does in the world for one job; each coroutine ends in exactly one event."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from dispatcher.clock import Clock
from dispatcher.collecting import Collecting
from dispatcher.core.events import (
    AttemptFailed,
    AttemptStarted,
    CancelConfirmed,
    Event,
    InputsReady,
    ResultsCollected,
    TransferFailed,
)
from dispatcher.core.lease import lease_s, may_requeue_at
from dispatcher.core.model import Job, Reason
from dispatcher.core.reclaiming import Kind
from dispatcher.errors import HostError, TransportError
from dispatcher.fleet import Fleet
from dispatcher.handoff import Handoff
from dispatcher.input_delivery import Bringing
from dispatcher.jobspec import JobSpecs
from dispatcher.leases import lease_of, renewed_at
from dispatcher.reclaim import Reclaimer
from dispatcher.session import RENEW_CALL_S, RESTART, HostSession
from dispatcher.store.base import Store
from dispatcher.store.rows import Lease
from worker_agent.protocol import AttemptRef, AttemptState

log = logging.getLogger("cosma")

RETRY_FIRST_S = 0.5
RETRY_MOST_S = 20.0
CONNECT_PATIENCE_S = 120.0  # for a host that was there when the stage was placed
# A new attempt's lease is committed as if renewed so late that a start sent within this time of it
# needs no commit of its own.
START_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """The hosts, the store and the artifact store, bound together."""

    fleet: Fleet
    session: Callable[[str], HostSession]
    store: Store
    bringing: Bringing
    collecting: Collecting
    specs: JobSpecs
    handoff: Handoff
    reclaimer: Reclaimer
    clock: Clock
    epoch: int
    lease_scale: float = 1.0
    # By job: of attempts that this process made, until they are followed.
    _leases: dict[str, Lease] = field(default_factory=dict, init=False)

    async def transfer_inputs(self, job: Job, host: str, stimulus: str) -> Event:
        """Bring what the first stage reads: pushed from here, or pulled by the host itself."""
        try:
            # What a first try has to bring does not lie there yet.
            first = stimulus != RESTART and not job.retries
            if await self.bringing.inputs(job, host, first=first):
                self.reclaimer.provenance.begin(job, host)
        except HostError as error:
            return self._transfer_failed(error, stimulus)
        return InputsReady(at=self.clock.now(), stimulus=stimulus)

    async def start_attempt(self, job: Job, stimulus: str) -> Event:
        """Start with the same attempt id until the host answers, or until no earlier try that
        may have arrived can still be alive there. A new id only once this one is proven dead."""
        event = await self._start_until_known(job, stimulus)
        if isinstance(event, AttemptFailed):
            await self.session(job.host or "").abandon(job.id, job.attempt)
        return event

    async def _start_until_known(self, job: Job, stimulus: str) -> Event:
        lease = await self._lease(job)
        # Until when something may have been sent; None: nothing ever was.
        arrived = renewed_at(lease, self.clock) if stimulus == RESTART else None
        began, delay = self.clock.monotonic(), RETRY_FIRST_S
        while True:
            try:
                executor = self.fleet.executor(job.host or "")
                spec = await self.specs.attempt(
                    job, executor, epoch=self.epoch, stimulus=stimulus, lease_s=lease.lease_s
                )
                # Before it is sent: from now on it may have arrived.
                latest = self.clock.monotonic() + RENEW_CALL_S
                if renewed_at(lease, self.clock) < latest:
                    await self.store.renewed(
                        [(job.id, job.attempt)],
                        self.clock.now(),
                        monotonic=latest,
                        clock_boot=self.clock.boot(),
                    )
                try:
                    await executor.start(spec)
                except HostError as error:
                    if not (isinstance(error, TransportError) and not error.sent):
                        arrived = self.clock.monotonic()
                    raise
                return self._started(job, stimulus)
            except TransportError as error:
                failure: HostError = error
            except HostError as error:
                if arrived is None:
                    return self._attempt_failed(job, error, stimulus)
                state = await self._state_of(job)
                if state is AttemptState.NEVER_STARTED:
                    return self._attempt_failed(job, error, stimulus)
                if state is not None:
                    return self._started(job, stimulus)
                failure = error
            now = self.clock.monotonic()
            if arrived is None:
                if now >= began + CONNECT_PATIENCE_S:
                    return self._attempt_failed(job, failure, stimulus)
            elif now >= may_requeue_at(arrived, lease.lease_s):
                return self._attempt_failed(job, failure, stimulus)
            else:
                await self.session(job.host or "").unanswered(failure.line)
            await asyncio.sleep(delay * random.uniform(0.75, 1.25))
            delay = min(RETRY_MOST_S, delay * 2)

    def new_lease(self, job: Job) -> Lease:
        """What the host will be told. Committed with the attempt: it never changes then, whatever
        the inventory says."""
        state = self.fleet.state(job.host or "")
        manual = state is not None and state.host.requeue == "manual"
        lease = self._leases[job.id] = Lease(
            job=job.id,
            attempt=job.attempt,
            host=job.host or "",
            lease_s=0.0 if manual else lease_s(job.stage) * self.lease_scale,
            renewed_at=self.clock.now(),
            renewed_monotonic=self.clock.monotonic() + RENEW_CALL_S + START_S,
            clock_boot=self.clock.boot(),
            host_boot=state.facts.boot_id if state is not None and state.facts else None,
        )
        return lease

    async def _lease(self, job: Job) -> Lease:
        known = self._leases.get(job.id)
        if known is not None and known.attempt == job.attempt:
            return known
        return await lease_of(self.store, job)

    async def _state_of(self, job: Job) -> AttemptState | None:
        """What the host itself says of the attempt; None when that cannot be known now."""
        try:
            executor = self.fleet.executor(job.host or "")
            ref = AttemptRef(run_dir=await self.specs.run_dir(job, executor), attempt=job.attempt)
            (status,) = await executor.status([ref])
        except HostError:
            return None
        return status.state

    def _started(self, job: Job, stimulus: str) -> AttemptStarted:
        return AttemptStarted(at=self.clock.now(), stimulus=stimulus, attempt=job.attempt)

    async def follow_attempt(self, job: Job, stimulus: str) -> None:
        """Hand the attempt to its host's session, which posts the event of its end."""
        lease = await self._lease(job)
        self._leases.pop(job.id, None)
        await self.session(job.host or "").watch(job, stimulus, lease)

    async def cancel_attempt(self, job: Job, stimulus: str) -> Event:
        """Until the host confirms that no process of the attempt is left, or the attempt has
        certainly ended itself there."""
        delay = RETRY_FIRST_S
        while True:
            try:
                executor = self.fleet.executor(job.host or "")
                run_dir = await self.specs.run_dir(job, executor)
                status = await executor.cancel(
                    AttemptRef(run_dir=run_dir, attempt=job.attempt), epoch=self.epoch
                )
                if status.state is not AttemptState.RUNNING:
                    return CancelConfirmed(at=self.clock.now(), stimulus=stimulus)
                log.warning("%s: attempt %d outlives its cancel", job.id, job.attempt)
            except HostError as error:
                log.debug("%s: not cancelled yet: %s", job.id, error.line)
                lease = await lease_of(self.store, job)
                dead_at = may_requeue_at(renewed_at(lease, self.clock), lease.lease_s)
                if lease.renewed_monotonic is not None and self.clock.monotonic() >= dead_at:
                    return CancelConfirmed(at=self.clock.now(), stimulus=stimulus)
            await asyncio.sleep(delay)
            delay = min(RETRY_MOST_S, delay * 2)

    async def reclaim_inputs(self, job: Job, host: str, stimulus: str) -> Event:
        return await self.reclaimer.reclaim(job, host, stimulus)

    async def reclaim_leftovers(self, job: Job, host: str, stimulus: str) -> Event:
        return await self.reclaimer.leftovers(job, host, stimulus)

    async def reclaim_made(
        self, job: Job, host: str, kinds: tuple[str, ...], stimulus: str
    ) -> Event:
        return await self.reclaimer.made(job, host, [Kind(kind) for kind in kinds], stimulus)

    async def collect_results(self, job: Job, host: str, stimulus: str) -> Event:
        """Copy the small and the final results here, verified by hash."""
        try:
            executor = self.fleet.executor(host)
            run_dir = await self.specs.run_dir(job, executor)
            attempts = await self.store.attempts(job.id)
            rows = await self.collecting.collect(job, executor, run_dir, attempts)
            left_on = await self.specs.left_on(job, attempts)
            config = await self.specs.config(job)
        except HostError as error:
            return self._transfer_failed(error, stimulus)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            return TransferFailed(
                at=self.clock.now(), stimulus=stimulus,
                reason=Reason.DISK_FULL if full else Reason.TRANSFER_FAILED,
                message=f"cannot write to the artifact store: {error}",
                advice="make room or give --artifacts another directory",
            )  # fmt: skip
        now = self.clock.now()
        self.reclaimer.giving_back.ended(job, now, config)
        return ResultsCollected(
            at=now,
            stimulus=stimulus,
            artifacts=len(rows),
            bytes=sum(row.bytes for row in rows),
            left_on=left_on,
        )

    def _transfer_failed(self, error: HostError, stimulus: str) -> TransferFailed:
        return TransferFailed(
            at=self.clock.now(), stimulus=stimulus, reason=error.reason, message=error.message,
            advice=error.fix,
        )  # fmt: skip

    def _attempt_failed(self, job: Job, error: HostError, stimulus: str) -> AttemptFailed:
        return AttemptFailed(
            at=self.clock.now(), stimulus=stimulus, attempt=job.attempt, reason=error.reason,
            message=error.message, advice=error.fix,
        )  # fmt: skip
