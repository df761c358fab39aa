"""A board kept through many changes equals one built afresh, and over time nothing is promised
twice and every reservation ends."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.core import events as ev
from dispatcher.core.board import Board
from dispatcher.core.ledger import Ledger
from dispatcher.core.machine import step
from dispatcher.core.model import SETTLED, Job, Reason, Reservation, Stage
from dispatcher.core.need import Need, Needs
from dispatcher.core.place import place
from dispatcher.core.policy import Order, Policy
from dispatcher.core.queue import Queue
from dispatcher.core.views import GpuView
from dispatcher.core.yard import Yard
from tests.unit.farms import NOW, Choosy, Hungry, at, gpu, host, job, running
from tests.unit.worlds import World

ORDERS: tuple[Order, ...] = ("earliest_finish", "most_free", "best_fit")
POLICIES = tuple(
    Policy(order=order, needs=needs) for order in ORDERS for needs in (Needs(), Hungry())
)


@given(st.randoms(use_true_random=False), st.sampled_from(POLICIES))
@settings(max_examples=50, deadline=None)
def test_a_board_that_changed_equals_one_built_afresh(
    chance: random.Random, policy: Policy
) -> None:
    """And nothing is promised twice, everybody who waits is told why, priority counts."""
    world = World(chance, policy)
    for _ in range(3):
        world.new_host()
    for _ in range(100):
        world.happen()
        if chance.random() < 0.6:
            world.decide()
    world.decide()


@given(st.randoms(use_true_random=False), st.sampled_from(POLICIES))
@settings(max_examples=40, deadline=None)
def test_each_reservation_ends_and_all_that_fits_gets_done(
    chance: random.Random, policy: Policy
) -> None:
    world = World(chance, policy)
    for _ in range(4):
        world.new_host()
    for _ in range(60):
        world.happen()
        if chance.random() < 0.6:
            world.decide()
    world.settle()
    left = [one for one in world.jobs.values() if one.state not in SETTLED]
    assert all(one.reservation is None for one in world.jobs.values())
    told = {one.job: one for one in world.board.waiting()}
    assert set(told) == {one.id for one in left}
    never = {Reason.NO_GPU_FITS, Reason.RAM_TOO_SMALL, Reason.NO_HOST, Reason.HOST_NOT_READY}
    assert {told[one.id].reason for one in left} <= never, told


def test_time_alone_starts_what_waited_for_it() -> None:
    """Nobody says so when a delay has passed, or when a job has waited for long."""
    board = Board(Policy())
    board.put_host(host())
    board.put_job(at("here", Stage.VALIDATION, not_before=NOW + 5.0))
    board.put_job(job("new", not_before=NOW + 5.0))
    early = board.decide(NOW)
    assert (early.assignments, early.stages) == ((), ())
    assert {one.reason for one in board.waiting()} == {Reason.BACKOFF}
    late = board.decide(NOW + 5.0)
    assert late.assignments == (("new", "gpu-a"),)
    assert [one.job for one in late.stages] == ["here"]
    back = board.decide(NOW)  # the clock was set back
    assert (back.assignments, back.stages) == ((), ())


def test_many_jobs_are_given_hosts_some_at_a_time_and_in_order() -> None:
    """They came before the hosts did: all are asked what these can do before any is given one."""
    board = Board(Policy())
    jobs = {f"j{n:02d}": job(f"j{n:02d}", frames=100 * (n + 1), priority=n) for n in range(25)}
    for one in jobs.values():
        board.put_job(one)
    for n in range(3):
        board.put_host(host(f"h{n}", gpu(f"GPU-{n}")))
    at_once = place(
        jobs.values(), [host(f"h{n}", gpu(f"GPU-{n}")) for n in range(3)], Policy(), NOW
    )
    given: list[str] = []
    decisions = 0
    while True:
        decided = board.decide(NOW, most=2)
        decisions += 1
        assert len(decided.assignments) <= 2
        for name, where in decided.assignments:
            given.append(name)
            board.put_job(step(jobs[name], ev.HostAssigned(at=NOW, host=where))[0])
        if not decided.more:
            break
    assert given == [name for name, _ in at_once.assignments]
    assert decisions > 1 + len(given) // 2, "the first only asked"


@pytest.mark.parametrize(("total", "moves"), [(12_200, False), (6_000, True)])
def test_what_was_learned_counts_for_all_that_waits_and_on_every_host(
    total: int, moves: bool
) -> None:
    """Seconds that differ a little move no job in the queue; twice as many do."""
    before, after = Policy(needs=Hungry()), Policy(needs=Choosy())
    device = gpu(total=total)
    ledger = Ledger(host("gpu-a", device), before)
    waiting = [job(f"j{n}", frames=300) for n in range(3)]

    def filled(yard: Yard) -> Queue:
        queue = Queue()
        for one in waiting:
            queue.put(one, yard.asked(one), None, ())
        return queue

    yard = Yard(before)
    yard.put(ledger)
    kind = yard.kind_of("gpu-a")
    assert yard.ahead(kind, waiting[0]) == before.ahead(waiting[0], (device,))
    queue = filled(yard)
    known = dict(queue.work_ms)
    yard.learn(after)
    assert yard.ahead(kind, waiting[0]) == after.ahead(waiting[0], (device,))
    moved = queue.ask(yard.asked(waiting[0]))
    assert len(moved) == (len(waiting) if moves else 0)
    for name, leaves in moved:
        one = next(one for one in waiting if one.id == name)
        queue.put(one, yard.asked(one), leaves, ())
    assert queue.work_ms == filled(yard).work_ms != known
    for one in waiting:
        queue.drop(one.id)
    assert not any(queue.work_ms.values()) and not any(queue.jobs.values())


class Frugal(Hungry):
    """A training that keeps a quarter of a core busy."""

    def of(self, job: Job, gpu: GpuView | None) -> Need:
        need = super().of(job, gpu)
        return dataclasses.replace(need, cpu_cores=0.25) if gpu is not None else need


def test_what_a_start_gives_back_is_used_once_the_start_is_told() -> None:
    """An idle GPU keeps a core, which its training needs a quarter of."""
    board = Board(Policy(needs=Frugal()))
    board.put_host(host("gpu-a", gpu(), cpu_cores=2, max_parallel={"extract": 2, "train": 1}))
    busy = dataclasses.replace(
        running("busy", Stage.FRAME_EXTRACTION),
        reservation=Reservation(
            job="busy", attempt=1, host="gpu-a", slot="extract", cpu_cores=0.5
        ),
    )  # fmt: skip
    trains = at("t", Stage.TRAINING, assigned_at=NOW)
    for one in (busy, trains, at("x", Stage.VALIDATION, priority=1, frames=100, assigned_at=NOW)):
        board.put_job(one)
    (start,) = board.decide(NOW).stages
    assert start.job == "t"
    told, _ = step(trains, ev.StagePlaced(at=NOW, reservation=start))
    board.put_job(told)
    (start,) = board.decide(NOW).stages
    assert start.job == "x"


def test_a_start_that_is_told_leaves_nothing_to_decide_on_its_host() -> None:
    board = Board(Policy(needs=Hungry()))
    board.put_host(host("gpu-a", gpu(), max_parallel={"train": 1}))
    first = at("a", Stage.TRAINING, assigned_at=NOW)
    for one in (first, at("b", Stage.TRAINING, assigned_at=NOW + 1.0)):
        board.put_job(one)
    (start,) = board.decide(NOW).stages
    placed, _ = step(first, ev.StagePlaced(at=NOW, reservation=start))
    begun, _ = step(placed, ev.AttemptStarted(at=NOW, attempt=start.attempt))
    for told in (placed, begun):
        board.put_job(told)
        assert (board.decide(NOW).stages, board.waits) == ((), {"b"})
    assert board.why(["a", "b"])["b"] is not None
