"""What the loop keeps apart, and what it learns: an old copy and a new one, ended attempts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

from dispatcher.clock import ManualClock
from dispatcher.core import effects as fx
from dispatcher.core import events as ev
from dispatcher.core.events import Event
from dispatcher.core.model import Job, JobKind, JobState, Step
from dispatcher.core.place import Policy
from dispatcher.effects import Effects
from dispatcher.executors.base import Executor
from dispatcher.fleet import Fleet
from dispatcher.inventory_model import Inventory, InventoryHost
from dispatcher.inventory_watch import InventoryWatch
from dispatcher.learning import Learning
from dispatcher.loop import Dispatcher
from dispatcher.quarantine import Quarantines
from dispatcher.stitching import Stitching
from dispatcher.store.sqlite import SqliteStore
from tests.contract.store_builders import record, running


class Files:
    """The two effects on a host's copy of the inputs; a removal ends when the test says so."""

    epoch = 1

    def __init__(self) -> None:
        self.told: list[str] = []
        self.removed = asyncio.Event()
        self.brought = asyncio.Event()

    async def reclaim_inputs(self, job: Job, host: str, stimulus: str) -> Event:
        await self.removed.wait()
        self.told.append(f"removed from {host}")
        return ev.InputsReclaimed(at=0.0, host=host, removed_bytes=1, freed_bytes=0)

    async def transfer_inputs(self, job: Job, host: str, stimulus: str) -> Event:
        self.told.append(f"brought to {host}")
        self.brought.set()
        return ev.InputsReady(at=0.0)


def dispatcher_of(store: SqliteStore, files: Files, tmp_path: Path) -> Dispatcher:
    def connect(_: InventoryHost) -> Executor:
        raise AssertionError("no host is needed here")

    clock = ManualClock()
    fleet = Fleet(Inventory(hosts=()), {}, clock=clock)
    return Dispatcher(
        store=store, fleet=fleet, effects=cast(Effects, files), clock=clock, policy=Policy(),
        learning=Learning(store), stitching=Stitching(store, clock), connect=connect,
        heartbeat=tmp_path / "heartbeat", quarantines=Quarantines(store, fleet, clock),
        inventory_watch=InventoryWatch(tmp_path / "inventory.yaml"),
    )  # fmt: skip


async def test_what_an_attempt_took_is_decided_by_once_it_has_ended(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "db")
    dispatcher = dispatcher_of(store, Files(), tmp_path)
    job = await running(store)
    dispatcher._jobs[job.id] = job
    before = dispatcher.policy
    await dispatcher._apply(job.id, ev.AttemptSucceeded(at=9.0, attempt=1), record())
    assert len(await store.stage_metrics(job.id)) == 1, "stored with the end"
    dispatcher._undecided = False
    dispatcher._take_up_needs()
    assert dispatcher._undecided, "other needs: everything is decided anew"
    assert (dispatcher.policy.need(job, None).runs, before.need(job, None).runs) == (1, 0)
    dispatcher._undecided = False
    dispatcher._take_up_needs()
    assert not dispatcher._undecided
    await dispatcher._tasks.end()
    await store.close()


async def test_inputs_are_brought_back_only_when_the_old_copy_is_gone(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "db")
    files = Files()
    dispatcher = dispatcher_of(store, files, tmp_path)
    job = Job(
        id="j", kind=JobKind.RECONSTRUCT, acquisition="a", name="j", auv="x", created_at=0.0,
        state=JobState.CLAIMED, step=Step.TRANSFER, host="b",
    )  # fmt: skip
    dispatcher._performing.perform(job, fx.ReclaimInputs(job="j", host="a"), stimulus="")
    dispatcher._performing.perform(job, fx.TransferInputs(job="j", host="b"), stimulus="")
    await files.brought.wait()
    assert files.told == ["brought to b"], "another host does not wait"
    files.brought.clear()
    dispatcher._performing.perform(job, fx.TransferInputs(job="j", host="a"), stimulus="")
    for _ in range(10):  # turns of the event loop, each of which could begin the copy
        await asyncio.sleep(0)
    assert files.told == ["brought to b"]
    files.removed.set()
    await files.brought.wait()
    assert files.told == ["brought to b", "removed from a", "brought to a"]
    await dispatcher._tasks.end()
    await store.close()
