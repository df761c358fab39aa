"""The farm on a virtual clock: what the dispatcher will do, played ahead. Pure.

Board decides, machine.step moves the jobs, retry.decide answers failures, plan_stitches makes the
stitches: nothing here schedules. Only what hosts and links do is played: a stage takes the seconds
its Need says, inputs take their bytes over the host's link, a fault comes where a function says.
A training that failed goes on from its checkpoint where that lies, and anew elsewhere.
Hosts stay as the snapshot shows them; collecting results takes no time.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Final

from dispatcher.core import effects as fx
from dispatcher.core import events as ev
from dispatcher.core.board import Board
from dispatcher.core.events import Event
from dispatcher.core.forecast_result import Decided, Played, Ran
from dispatcher.core.machine import StaleEvent, recover, step
from dispatcher.core.model import SETTLED, Job, JobState, Reason, Reservation, Stage, Step, Waiting
from dispatcher.core.need import GPU_STAGES, Need
from dispatcher.core.place import Placement
from dispatcher.core.plan import StitchView, deadlines, plan_stitches, stitch_job
from dispatcher.core.smaller_plan import plans_that_fit
from dispatcher.core.snapshot import Snapshot
from dispatcher.core.views import GpuView, HostView

_REMOVED: Final[dict[str, Any]] = {"removed_bytes": 0, "freed_bytes": 0}  # nobody reads it

Seconds = Callable[[Job, GpuView | None, Need], float]
# Of an attempt: why it fails, and after which share of its time; None: it succeeds.
Fault = Callable[[Job], tuple[Reason, float] | None]


def likely(_job: Job, _gpu: GpuView | None, need: Need) -> float:
    return need.seconds.likely


def no_fault(_job: Job) -> None:
    return None


def play(
    snapshot: Snapshot,
    *,
    seconds: Seconds = likely,
    fault: Fault = no_fault,
    tick_s: float = 0.0,
    board: Board | None = None,
    trace: list[Decided] | None = None,
    until: float = math.inf,
) -> Played:
    """Until nothing more happens, or nothing more by `until` (-inf: one decision).

    What ends within one `tick_s` is decided on together, as a dispatcher decides once on all that
    came while it was busy; 0: every instant on its own.
    `board`: an empty one to decide on; `trace` is given every decision in order.
    """
    farm = _Farm(snapshot, seconds, fault, board or Board(snapshot.policy), trace)
    farm.begin()
    while farm.events or farm.take_smaller_plans():
        first = farm.events[0][0]
        if first > until:
            break
        steps = math.ceil((first - snapshot.now) / tick_s) if tick_s else 0
        farm.turn(max(first, snapshot.now + steps * tick_s))
    return farm.played()


class _Farm:
    """Jobs, hosts and the events to come. One turn: everything due, then one decision."""

    def __init__(
        self,
        snapshot: Snapshot,
        seconds: Seconds,
        fault: Fault,
        board: Board,
        trace: list[Decided] | None,
    ) -> None:
        self.events: list[tuple[float, int, str, Event | None]] = []
        self._snapshot = snapshot
        self._seconds = seconds
        self._fault = fault
        self._board = board
        self._trace = trace
        self._order = itertools.count()
        self._jobs = {job.id: job for job in snapshot.jobs}
        self._hosts = {host.name: host for host in snapshot.hosts}
        self._gpus = {gpu.uuid: gpu for host in snapshot.hosts for gpu in host.gpus}
        self._underway = dict(snapshot.underway)
        self._link_free: defaultdict[str, float] = defaultdict(lambda: snapshot.now)
        self._segments = {
            name: {view.job: view for view in views} for name, views in snapshot.segments.items()
        }
        self._stitches = {
            name: {view.id: view for view in views} for name, views in snapshot.stitches.items()
        }
        self._changed_jobs: set[str] = set(self._jobs)
        self._changed_hosts: set[str] = set(self._hosts)
        self._to_plan: set[str] = set(self._segments)
        self._began: dict[str, float] = {}
        self._ended = {job.id: snapshot.now for job in snapshot.jobs if job.state in SETTLED}
        self._waiting: tuple[Waiting, ...] = ()
        self._first = 0
        self._ran: list[Ran] = []
        self._too_large: set[str] = set()  # with no smaller plan either
        # Of a training that failed: its host, and the share of it that its checkpoint there has.
        self._checkpoints: dict[str, tuple[str, float]] = {}
        self._undecided = True
        self._rounds = 0
        self._now = snapshot.now

    def begin(self) -> None:
        now = self._snapshot.now
        for job in self._snapshot.jobs:
            if job.step is Step.PLACE and job.not_before > now:
                self._at(job.not_before, job.id, None)
        for at, acquisition in deadlines(self._snapshot.segments, self._snapshot.sooner, now):
            self._at(at, acquisition, None)
        # Decided on the snapshot as it is; what is under way comes before what that leads to.
        self._settle(now, [(job, effect) for job in self._jobs.values() for effect in recover(job)])
        if self._trace is not None:
            self._first = len(self._trace)
            self._waiting = self._board.waiting()

    def turn(self, now: float) -> None:
        self._now = now
        while self.events and self.events[0][0] <= now:
            _, _, job, event = heapq.heappop(self.events)
            if event is None:  # a delay has passed, or the deadline of an acquisition
                self._undecided = True
                self._to_plan |= {job} & self._segments.keys()
            else:
                self._apply(job, event)
        self._settle(now)

    def _settle(self, now: float, under_way: Iterable[tuple[Job, fx.Effect]] = ()) -> None:
        """Plan what can be stitched and decide, where something calls for it."""
        self._plan_stitches(now)
        if self._undecided:
            self._undecided = False
            decided = self._decide(now)
            for job, effect in under_way:
                self._perform(job, effect, now)
            self._carry_out(decided, now)
            while decided.more:
                decided = self._decide(now)
                self._carry_out(decided, now)
            self._take_smaller_plans(job for job in self._board.unfit if job not in self._too_large)

    def take_smaller_plans(self) -> bool:
        """Of all that is left when nothing happens any more; whether there was any."""
        return self._take_smaller_plans(waiting.job for waiting in self._board.waiting())

    def _take_smaller_plans(self, jobs: Iterable[str]) -> bool:
        """What no host can hold gets done by a smaller plan; whether there was any."""
        left = [self._jobs[job] for job in jobs]
        found = plans_that_fit(left, self._hosts.values(), self._snapshot.policy) if left else {}
        self._too_large.update(job.id for job in left if job.id not in found)
        for job, plan in found.items():
            self._at(self._now, job, plan.taken(self._now, "played"))
        return bool(found)

    def played(self) -> Played:
        return Played(
            jobs=self._jobs,
            began=self._began,
            ended=self._ended,
            waiting=self._waiting,
            first=self._first,
            ran=tuple(self._ran),
            left=() if self.events else self._board.waiting(),
            rounds=self._rounds,
            end=self._now,
        )

    # --- decisions ---

    def _decide(self, now: float) -> Placement:
        for name in sorted(self._changed_hosts):
            self._board.put_host(self._hosts[name])
        for job in sorted(self._changed_jobs):
            self._board.put_job(self._jobs[job])
        self._changed_hosts.clear()
        self._changed_jobs.clear()
        self._rounds += 1
        return self._board.decide(now)

    def _carry_out(self, placement: Placement, now: float) -> None:
        for job, host in placement.assignments:
            if self._trace is not None:
                self._trace.append(Decided(at=now, job=job, host=host))
            self._apply(job, ev.HostAssigned(at=now, host=host))
        for promise in placement.stages:
            self._began.setdefault(promise.job, now)
            if self._trace is not None:
                self._trace.append(
                    Decided(
                        at=now,
                        job=promise.job,
                        host=promise.host,
                        stage=self._jobs[promise.job].stage,
                        gpu=promise.gpu,
                        mib=promise.mib,
                    )
                )
            self._apply(promise.job, ev.StagePlaced(at=now, reservation=promise))

    # --- events ---

    def _at(self, at: float, job: str, event: Event | None) -> None:
        heapq.heappush(self.events, (at, next(self._order), job, event))

    def _apply(self, name: str, event: Event) -> None:
        before = self._jobs[name]
        try:
            after, effects = step(before, event)
        except StaleEvent:
            return
        self._jobs[name] = after
        self._changed_jobs.add(name)
        if before.reservation is not None and after.reservation is None:
            self._released(before.reservation)
            self._undecided = True
        if after.step is Step.PLACE:
            if after.not_before > event.at:
                self._at(after.not_before, name, None)
            self._undecided = True
        elif after.step is Step.REST and before.step is not Step.REST:
            self._settled(after, event.at)
        for effect in effects:
            self._perform(after, effect, event.at)

    def _released(self, promise: Reservation) -> None:
        """What the last probe saw the attempt use is free again."""
        host, key = self._hosts.get(promise.host), (promise.job, promise.attempt)
        if host is None or not any(key in own for own in _seen(host)):
            return
        self._put(
            dataclasses.replace(
                host,
                gpus=tuple(_without(gpu, key) for gpu in host.gpus),
                ram_free_mib=host.ram_free_mib + host.ram_own_mib.get(key, 0),
                ram_own_mib={k: mib for k, mib in host.ram_own_mib.items() if k != key},
            )
        )

    def _settled(self, job: Job, at: float) -> None:
        self._ended[job.id] = at
        self._undecided = True
        segments = self._segments.get(job.acquisition, {})
        if job.id in segments:
            segments[job.id] = dataclasses.replace(segments[job.id], state=job.state)
        stitches = self._stitches.get(job.acquisition, {})
        if job.id in stitches:
            stitches[job.id] = dataclasses.replace(stitches[job.id], state=job.state)

    def _plan_stitches(self, now: float) -> None:
        for acquisition in sorted(self._to_plan):
            segments = self._segments.get(acquisition, {})
            made = self._stitches.setdefault(acquisition, {})
            # A pass-through is done at once and may be all that a cross-AUV stitch waits for.
            sooner = self._snapshot.sooner.get(acquisition)
            views = segments.values()
            while plans := plan_stitches(acquisition, views, made.values(), sooner, now):
                for plan in plans:
                    made[plan.id] = StitchView(
                        id=plan.id,
                        level=plan.level,
                        auv=plan.auv,
                        members=plan.members,
                        state=JobState.DONE if plan.passthrough else JobState.QUEUED,
                        version=plan.version,
                    )
                    if not plan.passthrough:
                        self._jobs[plan.id] = stitch_job(acquisition, plan, now)
                        self._changed_jobs.add(plan.id)
                        self._undecided = True
        self._to_plan.clear()

    # --- what hosts and links do ---

    def _perform(self, job: Job, effect: fx.Effect, at: float) -> None:
        match effect:
            case fx.TransferInputs():
                end = self._brought(job, effect.host, max(at, job.not_before))
                self._at(end, job.id, ev.InputsReady(at=end))
            case fx.HandOver():
                # What stages made of a video is smaller than it; how much is not stored.
                begin = max(at, job.not_before)
                end = self._carried(effect.host, job.input_bytes, begin)
                there = ev.HandedOver(at=end, stage=job.stage, source=effect.source, route="direct")
                self._at(end, job.id, there)
            case fx.ReclaimLeftovers():
                self._at(at, job.id, ev.LeftoversReclaimed(at=at, host=effect.host, **_REMOVED))
            case fx.StartAttempt():
                self._at(at, job.id, ev.AttemptStarted(at=at, attempt=effect.attempt))
            case fx.FollowAttempt():
                self._follow(job, at)
            case fx.CancelAttempt():
                self._at(at, job.id, ev.CancelConfirmed(at=at))
            case fx.ReclaimInputs():
                self._reclaimed(job, effect.host)
                self._at(at, job.id, ev.InputsReclaimed(at=at, host=effect.host, **_REMOVED))
            case fx.CollectResults():
                ready = max(at, job.not_before)
                self._at(ready, job.id, ev.ResultsCollected(at=ready))
            case fx.PlanStitches():
                self._to_plan.add(effect.acquisition)
            case _:
                raise TypeError(f"no way to play {effect}")

    def _carried(self, name: str, bytes_: int, begin: float) -> float:
        """When they have arrived: what comes for several jobs follows one another on the link."""
        host = self._hosts.get(name)
        if host is None or not bytes_:
            return begin
        rate = host.link_bytes_s or self._snapshot.policy.link_bytes_s
        self._link_free[name] = max(begin, self._link_free[name]) + bytes_ / rate
        return self._link_free[name]

    def _brought(self, job: Job, name: str, begin: float) -> float:
        host = self._hosts.get(name)
        if host is None:
            return begin
        there = host.cached_bytes.get(job.id, 0)
        missing = max(0, job.input_bytes - there)
        if missing:
            # Taken off the disk at once: the ledger counts bytes on their way all the same.
            self._put(
                dataclasses.replace(
                    host,
                    cached_bytes={**host.cached_bytes, job.id: there + missing},
                    disk_free_bytes=host.disk_free_bytes - missing,
                )
            )
        return self._carried(name, missing, begin)

    def _reclaimed(self, job: Job, name: str) -> None:
        host = self._hosts.get(name)
        if host is None or job.id not in host.cached_bytes:
            return
        cached = dict(host.cached_bytes)
        freed = cached.pop(job.id)
        self._put(
            dataclasses.replace(
                host, cached_bytes=cached, disk_free_bytes=host.disk_free_bytes + freed
            )
        )

    def _follow(self, job: Job, at: float) -> None:
        promise = job.reservation if job.stage in GPU_STAGES else None
        gpu = self._gpus.get(promise.gpu) if promise is not None and promise.gpu else None
        need = self._snapshot.policy.needs.of(job, gpu)
        drawn = self._seconds(job, gpu, need)
        underway = self._underway.pop(job.id, None)
        left = drawn if underway is None else underway.left_s(drawn, need.seconds.likely)
        checkpoint = self._checkpoints.pop(job.id, None)
        share = 0.0
        if checkpoint is not None and job.stage is Stage.TRAINING and checkpoint[0] == job.host:
            share = checkpoint[1]
            left *= 1.0 - share
        if self._trace is not None:
            self._ran.append(Ran(job, gpu, need, at, at + left))
        failure = self._fault(job)
        if failure is None:
            end = at + left
            self._at(end, job.id, ev.AttemptSucceeded(at=end, attempt=job.attempt))
            return
        end = at + left * failure[1]
        if job.stage is Stage.TRAINING and job.host is not None:
            self._checkpoints[job.id] = (job.host, share + (1.0 - share) * failure[1])
        failed = ev.AttemptFailed(at=end, attempt=job.attempt, reason=failure[0], message="played")
        self._at(end, job.id, failed)

    def _put(self, host: HostView) -> None:
        self._hosts[host.name] = host
        self._changed_hosts.add(host.name)


def _seen(host: HostView) -> tuple[dict[tuple[str, int], int], ...]:
    return (host.ram_own_mib, *(gpu.own_mib for gpu in host.gpus))


def _without(gpu: GpuView, key: tuple[str, int]) -> GpuView:
    if key not in gpu.own_mib:
        return gpu
    return dataclasses.replace(
        gpu,
        free_mib=gpu.free_mib + gpu.own_mib[key],
        own_mib={k: mib for k, mib in gpu.own_mib.items() if k != key},
    )
