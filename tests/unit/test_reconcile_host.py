"""The dispatcher compares a host that answers as told with a real database."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import cast

import pytest_asyncio

from dispatcher.clock import ManualClock
from dispatcher.core.events import AttemptFailed
from dispatcher.core.model import Job, Reason
from dispatcher.errors import HostError
from dispatcher.executors.base import Executor
from dispatcher.fleet import Fleet
from dispatcher.inventory_model import Inventory, InventoryHost
from dispatcher.reconcile import Reconciler
from dispatcher.session import HostSession
from dispatcher.store.sqlite import SqliteStore
from tests.contract.store_builders import advance, running
from worker_agent.protocol import AttemptRef, AttemptState, AttemptStatus


class Host:
    """Shows attempt 1 as running, and answers `cancel` with one of `answers` after the other."""

    def __init__(self, job: Job) -> None:
        self.answers: list[AttemptState | HostError] = []
        self._shown = AttemptStatus(
            run_dir=f"/srv/{job.acquisition}/{job.id}", attempt=1, state=AttemptState.RUNNING
        )

    async def work_dir(self) -> str:
        return "/srv"

    async def list_attempts(self) -> Sequence[AttemptStatus]:
        return [self._shown]

    async def sweep_grants(self, epoch: int) -> int:
        return 0

    async def cancel(self, ref: AttemptRef, *, epoch: int) -> AttemptStatus:
        assert (ref.run_dir, ref.attempt) == (self._shown.run_dir, 1)
        answer = self.answers.pop(0)
        if isinstance(answer, HostError):
            raise answer
        return dataclasses.replace(self._shown, state=answer)


@dataclasses.dataclass
class World:
    store: SqliteStore
    host: Host
    reconciler: Reconciler

    async def cancelled(self) -> int:
        return len(await self.store.events(kind="attempt_cancelled"))


def _no_session(host: str) -> HostSession:
    raise AssertionError(f"nothing is absent on {host}")


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A job whose first attempt, on host h, is over for the database."""
    store = await SqliteStore.open(tmp_path / "cosma.db")
    live = await running(store)
    lost = AttemptFailed(at=9.0, attempt=1, reason=Reason.HOST_UNREACHABLE, message="silent")
    job = (await advance(store, live, lost)).job
    host = Host(job)
    inventory = Inventory(hosts=(InventoryHost(name="h", address="h"),))
    clock = ManualClock()
    reconciler = Reconciler(
        fleet=Fleet.of(inventory, lambda _: cast(Executor, host), clock=clock),
        store=store,
        clock=clock,
        session=_no_session,
        jobs=lambda: {job.id: job},
        epoch=7,
    )
    yield World(store, host, reconciler)
    await store.close()


async def test_an_attempt_is_called_cancelled_once_it_has_ended(world: World) -> None:
    world.host.answers = [AttemptState.RUNNING, AttemptState.FINISHED]
    assert not await world.reconciler.host("h"), "to be compared again soon"
    assert await world.cancelled() == 0
    assert await world.reconciler.host("h")
    assert await world.cancelled() == 1


async def test_a_cancellation_that_failed_is_tried_again_soon(world: World) -> None:
    lost = HostError(Reason.HOST_UNREACHABLE, "connection lost", where="h")
    world.host.answers = [lost, AttemptState.VANISHED]
    assert not await world.reconciler.host("h")
    assert await world.cancelled() == 0
    assert await world.reconciler.host("h")
    assert await world.cancelled() == 1
