"""A board kept through many changes equals one built afresh, and over time nothing starves, nothing
is promised twice and every reservation ends."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.core import model as m
from dispatcher.core.board import Board
from dispatcher.core.machine import IllegalTransition, StaleEvent, step
from dispatcher.core.model import SETTLED, Job, JobKind, Reason, Step
from dispatcher.core.place import place
from dispatcher.core.policy import Order, Policy
from dispatcher.core.views import HostView
from tests.unit.farms import GIB, NOW, SUSPECT, UNFIT, gpu, job

ORDERS: tuple[Order, ...] = ("earliest_finish", "most_free", "best_fit")


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
            ],
            [5, 24, 4, 1, 0.2, 0.5, 2],
        )[0]
        what()

    def new_job(self) -> None:
        chance, self.made = self.chance, self.made + 1
        kind = chance.choice([JobKind.RECONSTRUCT, JobKind.RECONSTRUCT, JobKind.STITCH])
        self.tell(
            job(
                f"j{self.made}",
                kind=kind,
                stage=m.stages_of(kind)[0],
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

    def apply(self, name: str, event: m.Event) -> None:
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
            free = max(0, device.total_mib - foreign - sum(own.values()))
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
            gpu(f"GPU-{name}-{n}", total, name=f"x{total}", kind=kind)
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
                max_parallel=chance.choice([{}, {"train": 2}]),
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

    def decide(self) -> None:
        decided = self.board.decide(self.now)
        fresh = place(self.jobs.values(), self.hosts.values(), self.board.policy, self.now)
        assert decided.assignments == fresh.assignments
        assert decided.stages == fresh.stages
        assert self.board.waiting() == fresh.waiting
        again = self.board.decide(self.now)
        assert (again.assignments, again.stages) == (decided.assignments, decided.stages)
        for name, where in decided.assignments:
            if self.chance.random() < 0.9:
                self.apply(name, m.HostAssigned(at=self.now, host=where))
        for one in decided.stages:
            if self.chance.random() < 0.9:
                self.apply(one.job, m.StagePlaced(at=self.now, reservation=one))


EVENTS: dict[str, Callable[[Job, float], m.Event]] = {
    "brought": lambda _, now: m.InputsReady(at=now),
    "started": lambda one, now: m.AttemptStarted(at=now, attempt=one.attempt),
    "ended": lambda one, now: m.AttemptSucceeded(at=now, attempt=one.attempt),
    "failed": lambda one, now: m.AttemptFailed(
        at=now, attempt=one.attempt, reason=Reason.STAGE_CRASHED, message="x"
    ),
    "out of memory": lambda one, now: m.AttemptFailed(
        at=now, attempt=one.attempt, reason=Reason.GPU_OUT_OF_MEMORY, message="x"
    ),
    "host failed": lambda one, now: m.AttemptFailed(
        at=now, attempt=one.attempt, reason=Reason.TOOL_MISSING, message="x"
    ),
    "collected": lambda _, now: m.ResultsCollected(at=now),
    "cancelled": lambda _, now: m.CancelRequested(at=now),
    "hurried": lambda _, now: m.PriorityChanged(at=now, priority=1),
}


@given(st.randoms(use_true_random=False), st.sampled_from(ORDERS))
@settings(max_examples=60, deadline=None)
def test_a_board_that_changed_equals_one_built_afresh(chance: random.Random, order: Order) -> None:
    world = World(chance, Policy(order=order))
    for _ in range(3):
        world.new_host()
    for _ in range(120):
        world.happen()
        if chance.random() < 0.6:
            world.decide()
    world.decide()
