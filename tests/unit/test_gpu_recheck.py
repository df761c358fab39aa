"""The loop looks at a GPU whose memory ran out before it counts the failure."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from dispatcher.clock import ManualClock
from dispatcher.core import events as ev
from dispatcher.core.events import Event
from dispatcher.core.model import Reason, Stage
from dispatcher.core.place import Policy
from dispatcher.effects import Effects
from dispatcher.errors import TransportError
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
from tests.unit.test_fleet import FACTS, GPU
from worker_agent.protocol import GpuProcess, HostFacts

OOM = ev.AttemptFailed(at=9.0, attempt=1, reason=Reason.GPU_OUT_OF_MEMORY, message="no more")


class Nothing:
    epoch = 1


class Host:
    """Answers probes; the first one was asked before the memory ran out."""

    def __init__(self, *answers: HostFacts | TransportError) -> None:
        self._answers = list(answers)
        self.gate = asyncio.Event()

    async def probe(self, timeout_s: float = 30.0) -> HostFacts:
        answer = self._answers.pop(0)
        await self.gate.wait()
        if isinstance(answer, TransportError):
            raise answer
        return answer


def facts(foreign_mib: int) -> HostFacts:
    thief = GpuProcess(pid=9, used_mib=foreign_mib, name="thief")
    gpu = replace(GPU, free_mib=12_000 - foreign_mib, processes=(thief,) if foreign_mib else ())
    return replace(FACTS, gpus=(gpu,))


AWAY = TransportError(Reason.HOST_UNREACHABLE, "no route", where="h")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((facts(0), facts(8000)), Reason.GPU_MEMORY_TAKEN),
        ((facts(8000), facts(0)), Reason.GPU_OUT_OF_MEMORY),
        ((facts(8000), AWAY), Reason.GPU_OUT_OF_MEMORY),
    ],
)
async def test_what_a_new_probe_shows_is_what_counts(
    tmp_path: Path, answers: tuple[HostFacts | TransportError, ...], expected: Reason
) -> None:
    store = await SqliteStore.open(tmp_path / "db")
    host = Host(*answers)
    dispatcher = dispatcher_of(store, host, tmp_path)
    promised = await running(store)
    assert promised.reservation is not None
    job = replace(
        promised, stage=Stage.TRAINING,
        reservation=replace(promised.reservation, gpu="GPU-1", mib=6000),
    )  # fmt: skip
    dispatcher._jobs[job.id] = job
    await store.finish_attempt(job.id, 1, record(ok=False))
    before = asyncio.create_task(dispatcher.fleet.probe("h"))
    await asyncio.sleep(0)
    await dispatcher._apply(job.id, OOM)
    assert dispatcher._jobs[job.id] == job, "nothing is counted before the look"
    for _ in range(10):  # turns of the event loop, in which the look begins
        await asyncio.sleep(0)
    assert not dispatcher._queue, "what was asked before says nothing"
    assert dispatcher._tasks.busy, "a draining dispatcher waits for it"
    host.gate.set()
    found = await posted(dispatcher)
    await before
    assert isinstance(found, ev.AttemptFailed)
    assert (found.reason, found.looked) == (expected, True)
    await dispatcher._tasks.end()
    await store.close()


async def posted(dispatcher: Dispatcher) -> Event:
    while not dispatcher._queue:
        assert dispatcher._tasks.defect is None
        await dispatcher._wake.wait()
        dispatcher._wake.clear()
    return dispatcher._queue.popleft()[1]


def dispatcher_of(store: SqliteStore, host: Host, tmp_path: Path) -> Dispatcher:
    def connect(_: InventoryHost) -> Executor:
        raise AssertionError("the host is known")

    clock = ManualClock()
    inventory = Inventory(hosts=(InventoryHost(name="h", address="h"),))
    fleet = Fleet(inventory, {"h": cast(Executor, host)}, clock=clock)
    dispatcher = Dispatcher(
        store=store, fleet=fleet, effects=cast(Effects, Nothing()), clock=clock, policy=Policy(),
        learning=Learning(store), stitching=Stitching(store, clock), connect=connect,
        heartbeat=tmp_path / "heartbeat", quarantines=Quarantines(store, fleet, clock),
        inventory_watch=InventoryWatch(tmp_path / "inventory.yaml"),
    )  # fmt: skip
    dispatcher._reconciler.compared["h"] = clock.monotonic()  # that is not what is asked here
    return dispatcher
