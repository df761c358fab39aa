"""What `cosma plan` and `cosma why` say of any farm is what a decision on that farm does."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.core import events as ev
from dispatcher.core.model import Reservation
from dispatcher.core.outlook import look_ahead
from dispatcher.core.place import Explained, place
from dispatcher.core.policy import Policy
from dispatcher.core.snapshot import Snapshot
from tests.unit.farms import Choosy, Hungry
from tests.unit.worlds import World

SEEDS = st.integers(0, 1 << 32)


def any_farm(seed: int) -> Snapshot:
    """What random events have made of three hosts."""
    chance = random.Random(seed)
    policy = Policy(
        needs=chance.choice([Hungry(), Choosy()]),
        order=chance.choice(["earliest_finish", "most_free", "best_fit"]),
    )
    world = World(chance, policy)
    for _ in range(3):
        world.new_host()
    for _ in range(chance.randint(10, 100)):
        world.happen()
        if chance.random() < 0.3:
            decided = world.board.decide(world.now)
            for name, host in decided.assignments:
                world.apply(name, ev.HostAssigned(at=world.now, host=host))
            for promise in decided.stages:
                world.apply(promise.job, ev.StagePlaced(at=world.now, reservation=promise))
    return Snapshot(
        now=world.now,
        jobs=tuple(world.jobs.values()),
        hosts=tuple(world.hosts.values()),
        policy=world.board.policy,
    )


def decision(farm: Snapshot) -> Explained:
    return place(farm.jobs, farm.hosts, farm.policy, farm.now)


def started(decided: Explained) -> set[str]:
    return {name for name, _ in decided.assignments} | {one.job for one in decided.stages}


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_the_plan_begins_with_the_next_decision_whatever_is_under_way(seed: int) -> None:
    farm = any_farm(seed)
    decided = decision(farm)
    look = look_ahead(farm, draws=0)
    stages = {job.id: job.stage for job in farm.jobs}
    first = look.decisions[: len(decided.assignments) + len(decided.stages)]

    def told(one: Reservation) -> tuple[object, ...]:
        return one.job, one.host, stages[one.job], one.gpu, one.mib

    assert {(one.job, one.host, one.stage, one.gpu, one.mib) for one in first} == {
        *((name, host, None, None, 0) for name, host in decided.assignments),
        *map(told, decided.stages),
    }
    assert look.at_once == started(decided)
    assert look.waiting == decided.waiting
