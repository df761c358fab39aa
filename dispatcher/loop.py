"""The imperative shell: events in, one transition each, effects out as asyncio tasks.

Every event goes through one queue and one consumer, and is committed before any of its effects is
performed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dispatcher.clock import Clock
from dispatcher.control_server import Answering
from dispatcher.core import events as ev
from dispatcher.core.board import Board, Placement
from dispatcher.core.events import Event
from dispatcher.core.machine import StaleEvent, recover, step
from dispatcher.core.memory_blame import in_doubt
from dispatcher.core.model import SETTLED, Job, Step, Waiting
from dispatcher.core.policy import Policy
from dispatcher.core.smaller_plan import plans_that_fit
from dispatcher.core.unplaceable import given_up, too_large
from dispatcher.core.views import HostView
from dispatcher.effect_tasks import Performing
from dispatcher.effects import Effects
from dispatcher.errors import TakenOver
from dispatcher.fleet import Fleet, MakeExecutor
from dispatcher.garbage import keep_unsearched
from dispatcher.gpu_recheck import blame
from dispatcher.heartbeat import write_heartbeat
from dispatcher.intervals import Intervals
from dispatcher.inventory_watch import InventoryWatch
from dispatcher.learning import Learning
from dispatcher.probing import Probing
from dispatcher.quarantine import Quarantines
from dispatcher.reconcile import Reconciler
from dispatcher.scheduler import PORTION, Deciding, in_turns
from dispatcher.session import RESTART, HostSession, Record
from dispatcher.stitching import Stitching
from dispatcher.store.base import StaleRevision, Store
from dispatcher.story import tell
from dispatcher.tasks import Tasks

log = logging.getLogger("cosma")
# Goes on as long as the dispatcher does; calls what it is given when something is to be decided
# anew.
Service = Callable[[Callable[[], None]], Coroutine[Any, Any, None]]
# What the last decision led to: nothing becomes free by it.
DECIDED = (ev.HostAssigned, ev.StagePlaced, ev.AttemptStarted)
FREED = (ev.InputsReclaimed, ev.MadeReclaimed, ev.LeftoversReclaimed)  # as the next probe shows
RULES = "rules"  # the stimulus of what the rules for files on hosts remove


@dataclass(slots=True)
class Dispatcher:
    store: Store
    fleet: Fleet
    effects: Effects
    stitching: Stitching
    clock: Clock
    policy: Policy
    learning: Learning
    heartbeat: Path
    inventory_watch: InventoryWatch
    connect: MakeExecutor
    quarantines: Quarantines
    once: bool = False
    services: Sequence[Service] = ()
    intervals: Intervals = field(default_factory=Intervals)
    _sessions: dict[str, HostSession] = field(default_factory=dict)
    _reconciler: Reconciler = field(init=False)
    _jobs: dict[str, Job] = field(default_factory=dict)
    _queue: deque[tuple[str, Event, Record]] = field(default_factory=deque)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: Tasks = field(init=False)
    _performing: Performing = field(init=False)
    _deciding: Deciding = field(init=False)
    _answering: Answering = field(init=False)
    _poll_at: float = 0.0  # monotonic, as the next two
    _probe_at: float = 0.0
    _heartbeat_at: float = 0.0
    _probing: Probing = field(init=False)
    _position: int = 0  # up to where in the store jobs were taken up
    _errands: int = 0  # under way, and of no event
    _settled_at: float = 0.0
    _stopping: bool = False
    _undecided: bool = True

    def __post_init__(self) -> None:
        self._reconciler = Reconciler(
            fleet=self.fleet,
            store=self.store,
            clock=self.clock,
            session=self.session,
            jobs=lambda: self._jobs,
            epoch=self.effects.epoch,
        )
        self._probing = Probing(self.fleet, self.store, self.clock, self.intervals.probe_timeout_s)
        self._tasks = Tasks(self.clock, self.post, self._task_ended)
        self._performing = Performing(self.effects, self._tasks, self._plan)
        self._deciding = Deciding(self.fleet, self.clock, Board(self.policy))
        self._answering = Answering(
            self.store, self.clock, lambda: self._jobs, self._transition, self._abandon,
            self._performing.plan)  # fmt: skip

    def post(self, job: str, event: Event, record: Record = None) -> None:
        self._queue.append((job, event, record))
        self._wake.set()

    def stop(self) -> None:
        """Stop deciding and following; what runs on the hosts goes on running there."""
        self._stopping = True
        self._wake.set()

    def _task_ended(self) -> None:
        self._stopping = self._stopping or self._tasks.defect is not None
        self._wake.set()

    async def run(self) -> dict[str, Job]:
        """Until `stop`, or with `once` until nothing is left to do. Returns all jobs it knows."""
        try:
            self._settled_at = self.clock.monotonic() + self.intervals.settle_s
            self._open_sessions()
            for service in self.services:
                self._tasks.serve(service(self._look_again))
            await self._load(restart=True)
            while not self._stopping:
                await self._turn()
                if self.once and self._drained():
                    break
            if self._tasks.defect is not None:
                raise self._tasks.defect
            return dict(self._jobs)
        finally:
            await self._tasks.end()

    # --- one turn of the loop ---

    async def _turn(self) -> None:
        await self._periodic()
        while self._queue:
            await self._apply(*self._queue.popleft())
        if self._undecided:
            self._undecided = False
            await self._decide()
        if self._queue:
            return
        self._wake.clear()
        tick = asyncio.get_running_loop().call_later(self.intervals.tick_s, self._ticked)
        await self._wake.wait()
        tick.cancel()

    def _ticked(self) -> None:
        """Backoffs and stale probes run out without anybody saying so."""
        self._undecided = self._undecided or bool(self._deciding.board.waits)
        self._wake.set()

    async def _periodic(self) -> None:
        now = self.clock.monotonic()
        if now >= self._poll_at:
            self._poll_at = now + self.intervals.poll_s
            await self._load(restart=False)
            await self._answering.answer_all()
            await self._reload_inventory()
            await self._look_at_quarantines()
            self._take_up_needs()
            await self._give_back(self.effects.reclaimer.giving_back.overdue())
        for host in self.effects.reclaimer.trims.due():
            self._tasks.serve(self.effects.reclaimer.trims.trim(host))
        if now >= self._probe_at:
            self._probe_at = now + self.intervals.probe_s
            for state in self.fleet.states:
                # A host that hangs keeps its own probe, never the others'.
                self._tasks.serve(self._probe(state.host.name))
        if now >= self._heartbeat_at:
            self._heartbeat_at = now + self.intervals.heartbeat_s
            write_heartbeat(
                self.heartbeat, now=self.clock.now(), pid=os.getpid(), jobs=self._jobs.values()
            )

    def _take_up_needs(self) -> None:
        """Not with every attempt that ends: with other needs everything is decided anew."""
        if (needs := self.learning.take_up()) is not self.policy.needs:
            self.policy = dataclasses.replace(self.policy, needs=needs)
            self._undecided = True

    async def _look_at_quarantines(self) -> None:
        """What the operator said since, and the self-tests whose time has come."""
        if await self.quarantines.refresh():
            self._undecided = True
        for breaker in self.quarantines.due():
            self._tasks.serve(self.quarantines.test(breaker.key))

    async def _load(self, *, restart: bool) -> None:
        """Take up jobs this process has not seen: all of them at the start, then new ones."""
        self._position, made = await self.store.new_jobs(self._position)
        for number, job in enumerate(made):
            if len(made) > PORTION and number % PORTION == 0:
                keep_unsearched()
                await asyncio.sleep(0)
            if job.id in self._jobs:  # two looks at once: the other took it up
                continue
            self._jobs[job.id] = job
            self._deciding.job(None, job)
            self._undecided = True
            at_rest = job.step is Step.REST  # a cloud that was added, a segment that cannot be used
            for effect in recover(job) if restart or at_rest else ():
                self._performing.perform(job, effect, stimulus=RESTART)

    async def _abandon(self, job: Job) -> None:
        """The operator says that a silent host's attempt is dead: nothing may start it later."""
        self._performing.cancel_start(job.id)
        await self.session(job.host or "").abandon(job.id, job.attempt)
        # It may run on there for ever: ended as soon as the host is heard, not an hour later.
        self._reconciler.anew(job.host or "")

    async def _reload_inventory(self) -> None:
        inventory = self.inventory_watch.changed()
        if inventory is None:
            return
        changes = await self.fleet.reload(inventory, self.connect)
        log.info("inventory reloaded: %s", changes)
        self._open_sessions()
        self._probe_at = 0.0

    def _open_sessions(self) -> None:
        """A host that left the inventory keeps its session: its attempts may still end there."""
        for state in self.fleet.states:
            self.session(state.host.name)

    def session(self, host: str) -> HostSession:
        """Made for any host that is named, also for one that left the inventory long ago."""
        if host not in self._sessions:
            session = HostSession(
                host, self.fleet, self.store, self.clock, self.post, self.effects.epoch,
                self._reconciler.anew,
            )  # fmt: skip
            self._sessions[host] = session
            self._tasks.serve(session.run())
            self._tasks.serve(session.renew())
        return self._sessions[host]

    def _look_again(self) -> None:
        self._undecided = True
        self._wake.set()

    async def _probe(self, host: str, *, anew: bool = False) -> None:
        state = await self._probing.probe(host, anew=anew)
        if state is None:
            return
        self._look_again()
        if state.reachable:
            self.session(host).reached()
            await self._reconciler.when_due(host)

    # --- events ---

    async def _apply(self, job_id: str, event: Event, record: Record = None) -> None:
        job = self._jobs[job_id]
        if isinstance(event, ev.AttemptFailed):
            if in_doubt(job, event):
                self._tasks.spawn(job, self._look_at_gpu(job, event))
                return
            event = await self.quarantines.judge(job, event)
        try:
            await self._transition(job, event, record)
        except StaleEvent as late:
            log.debug("%s", late)
            if record is not None:  # what it took is worth knowing all the same
                await self.store.finish_attempt(job_id, record.attempt, record)

    async def _look_at_gpu(self, job: Job, event: ev.AttemptFailed) -> Event:
        await self._probe(job.host or "", anew=True)
        return await blame(self.fleet, self.store, job, event)

    async def _transition(self, before: Job, event: Event, record: Record = None) -> None:
        after, effects = step(before, event)
        lease = self.effects.new_lease(after) if isinstance(event, ev.StagePlaced) else None
        try:
            applied = await self.store.apply(before, after, event, lease, record)
        except StaleRevision as error:
            raise TakenOver(
                "another dispatcher changed the database", where=before.id, why=error.what,
                fix="Leave the work to that one",
            ) from None  # fmt: skip
        if isinstance(event, ev.CancelRequested):
            self._performing.cancel_copy(after.id)
        self._jobs[after.id] = applied.job
        self._deciding.job(before, applied.job)
        if not isinstance(event, DECIDED + FREED):
            self._undecided = True
        tell(before, applied.job, event)
        if applied.learned is not None:
            self.learning.learn(applied.learned)
        elif isinstance(event, ev.AttemptFailed):
            self._tasks.serve(self.learning.look(after.id, event.attempt))
        if isinstance(event, FREED) and event.freed_bytes:
            self._deciding.freed(event.host)
            if self._deciding.wants_disk():
                self._tasks.serve(self._errand(self._probe(event.host, anew=True)))
        for effect in effects:
            self._performing.perform(applied.job, effect, stimulus=applied.event)

    def _plan(self, acquisition: str) -> Coroutine[Any, Any, None]:
        async def plan() -> None:
            if await self.stitching.plan(acquisition):
                await self._load(restart=False)
            await self._give_back({acquisition})

        return self._errand(plan())

    def _errand(self, work: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
        """Counts from now on, not from when it comes to run: nothing is given up before its end."""
        self._errands += 1

        async def run() -> None:
            try:
                await work
            finally:
                self._errands -= 1

        return run()

    async def _give_back(self, acquisitions: Set[str]) -> None:
        """What of these is of no more use on the hosts goes."""
        known = [job for job in self._jobs.values() if job.acquisition in acquisitions]
        for job, effect in await self.effects.reclaimer.giving_back.effects(known):
            self._performing.perform(self._jobs[job.id], effect, stimulus=RULES)

    # --- decisions ---

    async def _decide(self) -> None:
        if self.clock.monotonic() < self._settled_at and not self._probing.all_hosts(times=1):
            self._undecided = True  # else the first host to answer would take all it can hold
            return
        decision = self._deciding.decide(self.policy)
        for reservation in decision.stages:  # first, as a GPU waits for the commits before its own
            self.post(reservation.job, ev.StagePlaced(at=self.clock.now(), reservation=reservation))
        if decision.more:  # what else is due comes in between
            asyncio.get_running_loop().call_soon(self._look_again)
        for job_id, host in in_turns(decision.assignments):
            self.post(job_id, ev.HostAssigned(at=self.clock.now(), host=host))
        if told := self._deciding.words():  # what was decided does not wait for their writing
            self._tasks.serve(self.store.set_waiting(told))
        reduced = self._take_smaller_plans(self._deciding.waiting.values(), self.fleet.host_views)
        if self.once:
            self._give_up_on(decision, but=reduced)

    def _take_smaller_plans(
        self, waiting: Iterable[Waiting], hosts: Callable[[], Iterable[HostView]]
    ) -> Set[str]:
        """What none of `hosts` can hold gets done by a smaller plan. Returns those jobs."""
        large = too_large(waiting)
        if not large or not self._all_probed():
            return set()
        found = plans_that_fit([self._jobs[job] for job in large], hosts(), self.policy)
        for job, plan in found.items():
            self.post(job, plan.taken(self.clock.now(), large[job]))
        return found.keys()

    def _all_probed(self) -> bool:
        return self._probing.all_hosts(times=self.intervals.probes_before_giving_up)

    def _give_up_on(self, decision: Placement, *, but: Set[str]) -> None:
        """Draining must end: hold what no host of this farm can take, with the reason."""
        if decision.assignments or decision.stages or self._at_work() or not self._all_probed():
            return
        if unseen := self._deciding.unseen_disks():
            for host in unseen:
                self._tasks.serve(self._errand(self._probe(host, anew=True)))
            return
        here = [host for host in self.fleet.host_views() if host.reachable and not host.cordoned]
        left = [waiting for waiting in self._deciding.board.waiting() if waiting.job not in but]
        reduced = self._take_smaller_plans(left, lambda: here)
        for job, event in given_up(left, self.clock.now()).items():
            if job not in reduced:
                self.post(job, event)

    def _at_work(self) -> bool:
        return (
            self._tasks.busy
            or bool(self._errands)
            or any(job.step not in (Step.PLACE, Step.REST) for job in self._jobs.values())
        )

    def _drained(self) -> bool:
        return (
            not self._queue
            and not self._tasks.busy
            and not self._errands
            and all(job.state in SETTLED for job in self._jobs.values())
            and not self.effects.reclaimer.trims.hurry()
        )
