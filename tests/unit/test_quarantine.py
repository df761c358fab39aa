"""The dispatcher's side of the breakers, on a real database and with hosts that answer as told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest

from dispatcher.clock import ManualClock
from dispatcher.core.breaker import Position
from dispatcher.core.events import AttemptFailed
from dispatcher.core.model import Job, Layer, Reason
from dispatcher.errors import AgentBroken, HostError, TransportError
from dispatcher.executors.base import Executor
from dispatcher.fleet import Fleet
from dispatcher.inventory_model import Inventory, InventoryHost
from dispatcher.quarantine import Quarantines
from dispatcher.store.sqlite import SqliteStore
from tests.contract.store_builders import running
from worker_agent.protocol import SelftestCheck, SelftestReport

GOOD = SelftestReport(ok=True, python="3.11", checks=())
BAD = SelftestReport(
    ok=False,
    python="3.11",
    checks=(
        SelftestCheck(name="decode", ok=True, seconds=1.0),
        SelftestCheck(name="sift", ok=False, seconds=1.0, message="3 of 500 features"),
    ),
)


class Host:
    """Only what a self-test asks of an executor."""

    def __init__(self) -> None:
        self.answer: SelftestReport | HostError = GOOD
        self.asked: list[tuple[str | None, str]] = []
        self.reached = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def selftest(self, gpu: str | None, gpu_kind: str) -> SelftestReport:
        self.asked.append((gpu, gpu_kind))
        self.reached.set()
        await self.gate.wait()
        if isinstance(self.answer, HostError):
            raise self.answer
        return self.answer


@dataclass
class World:
    path: Path
    store: SqliteStore
    host: Host = field(default_factory=Host)
    clock: ManualClock = field(default_factory=lambda: ManualClock(wall=20.0))

    def dispatcher(self) -> tuple[Quarantines, Fleet]:
        entry = InventoryHost(name="h", address="h")
        fleet = Fleet(Inventory(hosts=(entry,)), {"h": cast(Executor, self.host)}, clock=self.clock)
        return Quarantines(self.store, fleet, self.clock), fleet


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = await SqliteStore.open(tmp_path / "db")
    yield World(tmp_path / "db", store)
    await store.close()


def crash(at: float = 10.0, reason: Reason = Reason.STAGE_CRASHED) -> AttemptFailed:
    return AttemptFailed(at=at, attempt=1, reason=reason, message="it broke")


async def alive(world: World, *, gpu: str | None = None) -> list[Job]:
    """Two jobs in a live attempt on host h; the first one also in the database."""
    job = await running(world.store)
    assert job.reservation is not None
    job = replace(job, reservation=replace(job.reservation, gpu=gpu))
    return [job, replace(job, id="other")]


async def open_it(world: World, q: Quarantines, jobs: list[Job]) -> list[AttemptFailed]:
    return [await q.judge(job, crash()) for job in (jobs[0], jobs[1], jobs[0])]


async def test_the_failure_that_opens_it_and_those_after_it_blame_the_host(world: World) -> None:
    q, fleet = world.dispatcher()
    await q.refresh()
    jobs = await alive(world)
    events = await open_it(world, q, jobs)
    assert [event.blame for event in events] == [None, None, Layer.HOST]
    late = await q.judge(jobs[1], crash(30.0))
    assert late.blame is Layer.HOST
    (view,) = fleet.host_views()
    assert view.quarantine is not None
    (told,) = await world.store.events(kind="breaker_open")
    assert told.host == "h" and "fast failures" in told.payload["why"]


async def test_data_long_and_stale_attempts_blame_nobody(world: World) -> None:
    q, fleet = world.dispatcher()
    await q.refresh()
    jobs = await alive(world)
    for job in jobs * 3:
        await q.judge(job, crash(reason=Reason.DECODE_FAILED))
        await q.judge(job, replace(crash(), attempt=7))
        await q.judge(jobs[0], crash(at=500.0))  # it ran for minutes
    assert fleet.breakers == {}


async def test_a_gpu_fault_blames_the_gpu_by_its_uuid(world: World) -> None:
    q, fleet = world.dispatcher()
    await q.refresh()
    jobs = await alive(world, gpu="GPU-9")
    event = await q.judge(jobs[0], crash(reason=Reason.GPU_FAULT))
    assert event.blame is Layer.GPU and set(fleet.breakers) == {"GPU-9"}
    world.clock.advance(60)
    await q.test("GPU-9")
    assert world.host.asked == [("GPU-9", "cuda")]


async def test_the_self_test_lets_it_back_in(world: World) -> None:
    q, fleet = world.dispatcher()
    await q.refresh()
    await open_it(world, q, await alive(world))
    assert q.due() == []
    world.clock.advance(60)
    assert [one.key for one in q.due()] == ["h"]
    world.host.gate.clear()
    first, second = asyncio.ensure_future(q.test("h")), asyncio.ensure_future(q.test("h"))
    await second  # only one of them is let in
    assert [one.position for one in fleet.breakers.values()] == [Position.TESTING]
    world.host.gate.set()
    await first
    assert world.host.asked == [(None, "cpu")]
    assert [one.position for one in fleet.breakers.values()] == [Position.CLOSED]
    assert fleet.host_views()[0].quarantine is None
    (told,) = await world.store.events(kind="self_tested")
    assert told.payload["ok"] is True


@pytest.mark.parametrize(
    ("answer", "tests", "says"),
    [
        (BAD, 1, "sift: 3 of 500 features"),
        (AgentBroken("it does not start", where="h"), 1, "does not start"),
        (TransportError(Reason.HOST_UNREACHABLE, "no route", where="h"), 0, "fast failures"),
    ],
)
async def test_a_self_test_that_does_not_pass(
    world: World, answer: SelftestReport | HostError, tests: int, says: str
) -> None:
    q, fleet = world.dispatcher()
    await q.refresh()
    await open_it(world, q, await alive(world))
    world.clock.advance(60)
    world.host.answer = answer
    await q.test("h")
    (view,) = fleet.host_views()
    assert view.quarantine is not None and says in view.quarantine.line
    assert fleet.breakers["h"].failed_tests == tests == int(view.quarantine.failed_test)


async def test_it_survives_a_restart_and_a_command_resets_it(world: World) -> None:
    q, _ = world.dispatcher()
    await q.refresh()
    await open_it(world, q, await alive(world))
    q, fleet = world.dispatcher()
    assert await q.refresh() and not await q.refresh()
    assert fleet.host_views()[0].quarantine is not None
    command = await SqliteStore.open(world.path)
    assert await command.reset_breakers("h") == 1
    await command.set_cordoned("h", True, draining=True)
    await command.close()
    assert await q.refresh()
    (view,) = fleet.host_views()
    assert (view.quarantine, view.cordoned, view.draining) == (None, True, True)


async def test_a_dispatcher_that_ends_leaves_its_self_test_to_the_next(world: World) -> None:
    q, _ = world.dispatcher()
    await q.refresh()
    await open_it(world, q, await alive(world))
    world.clock.advance(60)
    world.host.gate.clear()
    test = asyncio.ensure_future(q.test("h"))
    await world.host.reached.wait()
    test.cancel()
    await asyncio.gather(test, return_exceptions=True)
    assert (await world.store.breakers())["h"].position is Position.OPEN
    q, fleet = world.dispatcher()
    await q.refresh()
    world.host.gate.set()
    (due,) = q.due()
    await q.test(due.key)
    assert fleet.host_views()[0].quarantine is None


async def test_a_reset_while_the_self_test_runs_stands(world: World) -> None:
    q, fleet = world.dispatcher()
    await q.refresh()
    await open_it(world, q, await alive(world))
    world.clock.advance(60)
    world.host.answer = BAD
    world.host.gate.clear()
    test = asyncio.ensure_future(q.test("h"))
    await world.host.reached.wait()
    await world.store.reset_breakers("h")
    world.host.gate.set()
    await test
    await q.refresh()
    assert fleet.breakers == {}
