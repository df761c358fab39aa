"""What is removed within a while is trimmed once: a real database, a host that answers as told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from dispatcher.clock import ManualClock
from dispatcher.core.model import Reason
from dispatcher.errors import HostError, TransportError
from dispatcher.executors.base import Executor
from dispatcher.fleet import Fleet
from dispatcher.inventory_model import Disk, Inventory, InventoryHost
from dispatcher.store.rows import Removal
from dispatcher.store.sqlite import SqliteStore
from dispatcher.trims import TRIMMED, Trims
from tests.contract.store_builders import JOB, fill
from worker_agent.protocol import TrimReport

DONE = TrimReport(
    mount="/data", method="helper", trimmed_bytes=500, note="", free_before=7, free_after=8
)


class Host:
    """Only what a trim asks of an executor."""

    def __init__(self) -> None:
        self.answer: TrimReport | HostError = DONE
        self.asked: list[str] = []
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def trim(self, mode: str) -> TrimReport:
        self.asked.append(mode)
        if self.meanwhile is not None:
            await self.meanwhile()
        if isinstance(self.answer, HostError):
            raise self.answer
        return self.answer


@dataclass
class World:
    store: SqliteStore
    host: Host = field(default_factory=Host)
    clock: ManualClock = field(default_factory=ManualClock)
    fstrim: str = "auto"

    def trims(self) -> Trims:
        entry = InventoryHost(
            name="h", address="h", disk=Disk.model_validate({"fstrim": self.fstrim})
        )
        fleet = Fleet(Inventory(hosts=(entry,)), {"h": cast(Executor, self.host)}, clock=self.clock)
        return Trims(fleet, self.store, self.clock, 15.0)

    async def remove(self, freed: int) -> None:
        row = Removal(
            at=self.clock.now(), host="h", job=JOB.id, what="frames", removed_bytes=freed - 1,
            freed_bytes=freed, free_before=1, free_after=1 + freed,
        )  # fmt: skip
        await self.store.add_removals([row])


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = await SqliteStore.open(tmp_path / "db")
    await fill(store)
    yield World(store)
    await store.close()


async def test_removals_of_one_window_are_one_trim(world: World) -> None:
    trims = world.trims()
    for freed in (100, 200):
        await world.remove(freed)
        trims.want("h")
        assert trims.due() == []
        world.clock.advance(10.0)
    assert trims.due() == ["h"] and trims.due() == [], "it is told once"
    await trims.trim("h")
    assert world.host.asked == ["auto"]
    (row,) = await world.store.trims("h")
    assert (row.freed_bytes, row.trimmed_bytes, row.method) == (300, 500, "helper")
    (event,) = await world.store.events(kind=TRIMMED)
    assert event.host == "h" and event.payload["freed_bytes"] == 300
    assert await world.store.given_back(JOB.id) == 300, "the kernel counts all free space"
    assert await world.store.untrimmed() == {}
    await world.remove(40)
    assert (await world.store.untrimmed())["h"][1] == 40
    assert not trims.hurry()


async def test_what_is_removed_during_a_trim_is_for_the_next_one(world: World) -> None:
    trims = world.trims()
    await world.remove(100)
    trims.want("h", now=True)
    assert trims.due() == ["h"]
    trims.want("h")
    assert trims.due() == [], "one at a time"
    world.host.meanwhile = partial(world.remove, 40)
    await trims.trim("h")
    assert [row.freed_bytes for row in await world.store.trims()] == [100]
    assert (await world.store.untrimmed())["h"][1] == 40
    assert trims.hurry(), "there is another one to come"
    assert trims.due() == ["h"]


async def test_a_drained_dispatcher_waits_for_no_window(world: World) -> None:
    trims = world.trims()
    trims.want("h", "auto")
    trims.want("h", "sudo")
    assert trims.hurry() and trims.due() == ["h"]
    await trims.trim("h")
    assert world.host.asked == ["sudo"]
    assert not trims.hurry()


async def test_a_trim_that_could_not_be_done_gives_nothing_back(world: World) -> None:
    trims = world.trims()
    await world.remove(100)
    world.host.answer = TrimReport(
        mount="/data", method="", trimmed_bytes=None, note="no sudo", free_before=7, free_after=7
    )
    trims.want("h", now=True)
    assert trims.due() == ["h"]
    await trims.trim("h")
    (row,) = await world.store.trims()
    assert (row.trimmed_bytes, row.note) == (None, "no sudo")
    assert await world.store.given_back(JOB.id) is None
    assert (await world.store.untrimmed())["h"][1] == 100


async def test_what_was_not_trimmed_is_taken_up_by_the_next_dispatcher(world: World) -> None:
    trims = world.trims()
    await world.remove(100)
    world.host.answer = TransportError(Reason.HOST_UNREACHABLE, "gone", where="h")
    trims.want("h", now=True)
    assert trims.due() == ["h"]
    await trims.trim("h")
    assert await world.store.trims() == [] and not trims.hurry()
    world.host.answer = DONE
    after = world.trims()
    await after.take_up()
    assert after.hurry() and after.due() == ["h"]
    await after.trim("h")
    assert await world.store.given_back(JOB.id) == 100
    world.fstrim = "off"
    await world.remove(1)
    off = world.trims()
    await off.take_up()
    assert not off.hurry()
