"""A farm that random events happen to, for property tests of the board."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

from dispatcher.core import events as ev
from dispatcher.core import model as m
from dispatcher.core.board import Board, Placement
from dispatcher.core.machine import IllegalTransition, StaleEvent, step
from dispatcher.core.model import SETTLED, Job, JobKind, JobState, Reason, Reservation, Step
from dispatcher.core.need import FirstGuess, Needs
from dispatcher.core.place import place
from dispatcher.core.policy import Policy
from dispatcher.core.views import GpuView, HostView
from tests.unit.farms import GIB, NOW, SUSPECT, UNFIT, Choosy, Hungry, gpu, job


class World:
    """A farm that random events happen to, told to a board as the dispatcher would tell it."""

    def __init__(self, chance: random.Random, policy: Policy) -> None:
        self.chance = chance
        self.now = NOW
        self.jobs: dict[str, Job] = {}
        self.hosts: dict[str, HostView] = {}
        self.board = Board(policy)
        self.made = 0

    def happen(self) -> None:
        what = self.chance.choices(
            [
                self.new_job,
                self.event,
                self.probe,
                self.new_host,
                self.lose_host,
                self.drop,
                self.wait,
                self.learn,
            ],
            [5, 24, 4, 1, 0.2, 0.5, 2, 0.5],
        )[0]
        what()

    def new_job(self) -> None:
        chance, self.made = self.chance, self.made + 1
        kind = chance.choice([JobKind.RECONSTRUCT, JobKind.RECONSTRUCT, JobKind.STITCH])
        stages = m.stages_of(kind)  # a training at once, too, so that GPUs are shared
        self.tell(
            job(
                f"j{self.made}",
                kind=kind,
                stage=chance.choice([stages[0], stages[0], stages[len(stages) * 5 // 8]]),
                acquisition=chance.choice(["dive", "wreck"]),
                priority=chance.choice([0, 0, 0, 1]),
                created_at=self.now - chance.choice([0.0, 1.0, 5000.0]),
                input_bytes=chance.choice([0, 1, 5, 12]) * GIB,
                frames=chance.choice([0, 100, 900]),
                need_mib=chance.choice([None, None, None, 500, 9000, 20000]),
                need_ram_mib=chance.choice([None, None, 9000, 30000]),
            )
        )

    def tell(self, one: Job) -> None:
        self.jobs[one.id] = one
        self.board.put_job(one)

    def event(self) -> None:
        """Any job, whatever can happen to it next."""
        active = [one for one in self.jobs.values() if one.state not in SETTLED]
        if not active:
            return
        one = self.chance.choice(active)
        likely = {Step.TRANSFER: "brought", Step.START: "started", Step.RUN: "ended"}
        usual = likely.get(one.step, "collected")
        kind = usual if self.chance.random() < 0.85 else self.chance.choice(list(EVENTS))
        self.apply(one.id, EVENTS[kind](one, self.now))

    def apply(self, name: str, event: ev.Event) -> None:
        try:
            after, _ = step(self.jobs[name], event)
        except (StaleEvent, IllegalTransition):
            return
        self.tell(after)

    def probe(self) -> None:
        if self.hosts:
            self.show(self._seen(self.chance.choice(list(self.hosts.values()))))

    def _seen(self, view: HostView) -> HostView:
        """Foreign processes come and go, attempts use what they like."""
        chance = self.chance
        gpus = []
        for device in view.gpus:
            foreign = chance.choice([0, 0, 0, 0, device.total_mib // 3, device.total_mib])
            own = {
                (one.id, one.attempt): chance.choice([0, 500, one.reservation.mib])
                for one in self.jobs.values()
                if one.reservation is not None and one.reservation.gpu == device.uuid
            }
            unlisted = chance.choice([0, 0, device.total_mib // 4])  # the driver's, say
            free = max(0, device.total_mib - foreign - sum(own.values()) - unlisted)
            gpus.append(
                dataclasses.replace(
                    device, foreign_mib=foreign, own_mib=own, free_mib=free,
                    probe_age_s=chance.choice([0.0] * 12 + [500.0]),
                    quarantine=chance.choice([None] * 16 + [SUSPECT, UNFIT]),
                )
            )  # fmt: skip
        draining = chance.random() < 0.05
        return dataclasses.replace(
            view,
            gpus=tuple(gpus),
            reachable=chance.random() > 0.05,
            silent_s=chance.choice([5.0, 1e4]),
            draining=draining,
            cordoned=draining or chance.random() < 0.05,
            quarantine=chance.choice([None] * 16 + [SUSPECT, UNFIT]),
            ram_free_mib=chance.choice([view.ram_total_mib, view.ram_total_mib // 2]),
            disk_free_bytes=chance.choice([1, 20, 60, 100]) * GIB,
            cached_bytes={name: GIB for name in self.jobs if chance.random() < 0.1},
        )

    def show(self, view: HostView) -> None:
        self.hosts[view.name] = view
        self.board.put_host(view)

    def new_host(self) -> None:
        chance = self.chance
        name = f"h{chance.randint(0, 4)}"
        if name in self.hosts:
            return
        devices = [
            gpu(
                f"GPU-{name}-{n}",
                total,
                name=f"x{total}",
                kind=kind,
                max_decode_sessions=chance.choice([0, 1, 3]),
            )
            for n in range(chance.choice([0, 1, 1, 2]))
            for total in [chance.choice([4000, 12000, 24000, 24000])]
            for kind in [chance.choice(["cuda", "cuda", "cpu"])]
        ]
        ram = chance.choice([0, 16000, 64000])
        self.show(
            HostView(
                name=name, reachable=True, gpus=tuple(devices), ready=chance.random() > 0.05,
                cpu_cores=chance.choice([0, 2, 8]), ram_total_mib=ram, ram_free_mib=ram,
                headroom_mib=chance.choice([0, 512]), disk_free_bytes=100 * GIB,
                link_bytes_s=chance.choice([0.0, 1e7, 1e8]),
                max_parallel=chance.choice([{}, {"train": 2}, {"train": 4}]),
            )
        )  # fmt: skip

    def lose_host(self) -> None:
        if self.hosts:
            name = self.chance.choice(list(self.hosts))
            del self.hosts[name]
            self.board.drop_host(name)

    def drop(self) -> None:
        done = [one.id for one in self.jobs.values() if one.state in SETTLED]
        if done:
            name = self.chance.choice(done)
            del self.jobs[name]
            self.board.drop_job(name)

    def wait(self) -> None:
        self.now += self.chance.choice([0.5, 30.0, 700.0])

    def learn(self) -> None:
        """Other needs: what fitted fits no more, or the reverse."""
        needs = self.chance.choice([Needs(), Hungry(), Choosy(guess=FirstGuess(stitch_ram_mib=1))])
        self.board.set_policy(dataclasses.replace(self.board.policy, needs=needs))

    def decide(self) -> None:
        decided = self.board.decide(self.now)
        fresh = place(self.jobs.values(), self.hosts.values(), self.board.policy, self.now)
        assert decided.assignments == fresh.assignments
        assert decided.stages == fresh.stages
        told = self.board.waiting()
        assert told == fresh.waiting
        again = self.board.decide(self.now)
        assert (again.assignments, again.stages) == (decided.assignments, decided.stages)
        self.check_promises(decided)
        self.check_reasons(decided, told)
        self.check_priority(decided)
        for name, where in decided.assignments:
            if self.chance.random() < 0.9:
                self.apply(name, ev.HostAssigned(at=self.now, host=where))
        for one in decided.stages:
            if self.chance.random() < 0.9:
                self.apply(one.job, ev.StagePlaced(at=self.now, reservation=one))

    def check_promises(self, decided: Placement) -> None:
        """Whatever was promised before, and whatever others took since: nothing new is promised
        that is not there."""
        for view in self.hosts.values():
            new = [one for one in decided.stages if one.host == view.name]
            mine = [one for one in self.jobs.values() if one.host == view.name]
            old = [one.reservation for one in mine if one.reservation is not None]
            coming = [self.jobs[name] for name, where in decided.assignments if where == view.name]
            if new:
                assert view.reachable and view.ready and not view.draining
                assert view.quarantine is None
            if coming:
                assert view.reachable and view.ready and not view.cordoned
                assert view.quarantine is None
            for slot in {one.slot for one in new}:
                limit = view.max_parallel.get(
                    slot, max(1, len(view.gpus)) if slot == "train" else Policy().slots[slot]
                )
                assert sum(one.slot == slot for one in [*new, *old]) <= limit
            for device in view.gpus:
                self.check_device(view, device, new, old)
            self.check_host(view, new, old)
            travelling = [one for one in mine if one.step is Step.TRANSFER]
            arriving = sum(
                max(0, one.input_bytes - view.cached_bytes.get(one.id, 0))
                for one in [*coming, *travelling]
            )
            promised = sum(one.disk_bytes for one in [*new, *old])
            if coming or any(one.disk_bytes for one in new):
                assert arriving + promised + view.disk_reserve_bytes <= view.disk_free_bytes

    def check_device(
        self, view: HostView, device: GpuView, new: list[Reservation], old: list[Reservation]
    ) -> None:
        fresh = [one for one in new if one.gpu == device.uuid]
        known = [one for one in old if one.gpu == device.uuid]
        if not fresh:
            return
        assert device.quarantine is None and device.probe_age_s <= Policy().probe_stale_s
        sessions = sum(one.decode_sessions for one in [*fresh, *known])
        if any(one.decode_sessions for one in fresh):
            assert sessions + device.decode_sessions <= device.max_decode_sessions
        asked = sum(one.mib for one in fresh)
        if not asked or (device.kind == "cpu" and view.ram_total_mib):
            return  # of RAM
        used = {
            (one.job, one.attempt): device.own_mib.get((one.job, one.attempt), 0) for one in old
        }
        unused = sum(max(0, one.mib - used[one.job, one.attempt]) for one in known)
        promised = sum(one.mib for one in [*fresh, *known])
        assert promised + device.foreign_mib + view.headroom_mib <= device.total_mib
        assert asked + unused + view.headroom_mib <= device.free_mib

    def check_host(self, view: HostView, new: list[Reservation], old: list[Reservation]) -> None:
        asked = sum(one.ram_mib for one in new)
        if view.ram_total_mib and asked:
            unused = sum(
                max(0, one.ram_mib - view.ram_own_mib.get((one.job, one.attempt), 0)) for one in old
            )
            assert asked + unused <= view.ram_free_mib
            assert sum(one.ram_mib for one in [*new, *old]) <= view.ram_total_mib
        if view.cpu_cores and any(one.cpu_cores for one in new):
            assert sum(one.cpu_cores for one in [*new, *old]) <= view.cpu_cores

    def check_reasons(self, decided: Placement, told: tuple[m.Waiting, ...]) -> None:
        placed = [name for name, _ in decided.assignments] + [one.job for one in decided.stages]
        waits = [
            one.id
            for one in self.jobs.values()
            if one.step is Step.PLACE and one.state not in SETTLED
        ]
        assert sorted([*placed, *(one.job for one in told)]) == sorted(waits)
        assert all(one.message for one in told)

    def check_priority(self, decided: Placement) -> None:
        """Of two jobs that want the same, the more important one is not the one that waits."""
        given = {name for name, _ in decided.assignments}
        new = [
            one
            for one in self.jobs.values()
            if one.state is JobState.QUEUED and one.host is None and one.not_before <= self.now
        ]
        for left in new:
            for taken in new:
                if taken.id in given and left.id not in given and left.priority > taken.priority:
                    assert self.wish(left) != self.wish(taken)

    def wish(self, one: Job) -> tuple[object, ...]:
        cached = [view.name for view in self.hosts.values() if one.id in view.cached_bytes]
        return (Policy().work(one), one.avoid_hosts, *cached)

    def settle(self) -> None:
        """All is well from now on: everything that fits anywhere gets done."""
        for name in list(self.hosts):
            view = self.hosts[name]
            self.show(
                HostView(
                    name=name, reachable=True, cpu_cores=view.cpu_cores,
                    ram_total_mib=view.ram_total_mib, ram_free_mib=view.ram_total_mib,
                    headroom_mib=view.headroom_mib, disk_free_bytes=500 * GIB,
                    gpus=tuple(
                        gpu(g.uuid, g.total_mib, name=g.name, kind=g.kind,
                            max_decode_sessions=g.max_decode_sessions)
                        for g in view.gpus
                    ),
                )
            )  # fmt: skip
        ends = {Step.TRANSFER: "brought", Step.START: "started", Step.RUN: "ended",
                Step.COLLECT: "collected", Step.CANCEL: "ended"}  # fmt: skip
        for _ in range(100 * len(self.jobs) + 10):
            self.now += 60.0
            before = dict(self.jobs)
            for one in before.values():
                if one.state not in SETTLED and one.step in ends:
                    event = "handed" if one.origin and one.step is Step.TRANSFER else ends[one.step]
                    self.apply(one.id, EVENTS[event](one, self.now))
            decided = self.board.decide(self.now)
            self.check_promises(decided)
            for name, where in decided.assignments:
                self.apply(name, ev.HostAssigned(at=self.now, host=where))
            for promise in decided.stages:
                self.apply(promise.job, ev.StagePlaced(at=self.now, reservation=promise))
            if before == self.jobs and all(j.not_before <= self.now for j in self.jobs.values()):
                return
        raise AssertionError("it goes on for ever")


EVENTS: dict[str, Callable[[Job, float], ev.Event]] = {
    "brought": lambda _, now: ev.InputsReady(at=now),
    "started": lambda one, now: ev.AttemptStarted(at=now, attempt=one.attempt),
    "ended": lambda one, now: ev.AttemptSucceeded(at=now, attempt=one.attempt),
    "failed": lambda one, now: ev.AttemptFailed(
        at=now, attempt=one.attempt, reason=Reason.STAGE_CRASHED, message="x"
    ),
    "out of memory": lambda one, now: ev.AttemptFailed(
        at=now, attempt=one.attempt, reason=Reason.GPU_OUT_OF_MEMORY, message="x"
    ),
    "host failed": lambda one, now: ev.AttemptFailed(
        at=now, attempt=one.attempt, reason=Reason.TOOL_MISSING, message="x"
    ),
    "collected": lambda _, now: ev.ResultsCollected(at=now),
    "cancelled": lambda _, now: ev.CancelRequested(at=now),
    "handed": lambda one, now: ev.HandedOver(
        at=now, stage=one.stage, source=one.origin or "", route="direct"
    ),
    "hurried": lambda _, now: ev.PriorityChanged(at=now, priority=1),
}
