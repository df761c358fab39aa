"""Every input that came without a hash gets one, whatever came between."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dispatcher.core.model import Reason
from dispatcher.errors import AgentRefusal, HostError, TransportError
from dispatcher.provenance import DELIVERED, HASHED, Provenance
from worker_agent.protocol import Refusal, TransferReport

JOB = cast(Any, SimpleNamespace(id="a-1"))


class World:
    """A store that keeps events, and hosts that say the hash of a path."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.asked: list[tuple[str, str]] = []
        self.fails: dict[str, HostError] = {}  # by path
        self.came = asyncio.Event()  # somebody asks
        self.answer = asyncio.Event()
        self.answer.set()
        self.busy: defaultdict[str, int] = defaultdict(int)
        self.busiest = 0
        fleet = SimpleNamespace(executor=lambda name: Host(self, name))
        specs = SimpleNamespace(store=self, run_dir=self.run_dir)
        self.provenance = Provenance(cast(Any, fleet), cast(Any, specs))

    async def run_dir(self, job: Any, executor: Any) -> str:
        return f"/{executor.name}/{job.id}"

    async def events(self, *, job: str, kind: str) -> list[Any]:
        return [row for row in self.rows if (row.job, row.kind) == (job, kind)]

    async def record_event(self, kind: str, *, job: str, host: str, payload: Any) -> None:
        row = SimpleNamespace(id=len(self.rows), kind=kind, job=job, host=host, payload=payload)
        self.rows.append(row)

    async def delivered(self, path: str, sha256: str | None = None, host: str = "w1") -> None:
        payload = {"path": path, "bytes": 1, "sha256": sha256}
        await self.record_event(DELIVERED, job=JOB.id, host=host, payload=payload)

    @property
    def hashed(self) -> list[tuple[str, str]]:
        return [(r.payload["path"], r.payload["sha256"]) for r in self.rows if r.kind == HASHED]


class Host:
    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name

    async def digest(self, run_dir: str, path: str) -> TransferReport:
        world = self.world
        world.asked.append((run_dir, path))
        world.came.set()
        world.busy[self.name] += 1
        world.busiest = max(world.busiest, world.busy[self.name])
        await world.answer.wait()
        await asyncio.sleep(0)
        world.busy[self.name] -= 1
        if path in world.fails:
            raise world.fails[path]
        return TransferReport(path=path, bytes=1, sha256=f"of {path}", complete=True)


@pytest.fixture
async def world() -> World:
    return World()


async def test_only_what_came_here_without_a_hash_is_asked_for_and_only_once(world: World) -> None:
    await world.delivered("input/a.MP4")
    await world.delivered("input/b.MP4", "c0ffee")
    await world.delivered("input/c.MP4", host="w2")
    for _ in range(2):
        await world.provenance.settle(JOB, "w1")
    assert world.asked == [("/w1/a-1", "input/a.MP4")]
    assert world.hashed == [("input/a.MP4", "of input/a.MP4")]


async def test_what_comes_again_is_hashed_again(world: World) -> None:
    for _ in range(2):
        await world.delivered("input/a.MP4")
        await world.provenance.settle(JOB, "w1")
    assert len(world.hashed) == 2


async def test_what_is_under_way_is_waited_for(world: World) -> None:
    await world.delivered("input/a.MP4")
    world.answer.clear()
    world.provenance.begin(JOB, "w1")
    world.provenance.begin(JOB, "w1")
    settling = asyncio.ensure_future(world.provenance.settle(JOB, "w1"))
    await world.came.wait()
    assert not settling.done()
    world.answer.set()
    await settling
    assert len(world.asked) == len(world.hashed) == 1


async def test_a_host_takes_one_at_a_time(world: World) -> None:
    jobs = [cast(Any, SimpleNamespace(id=f"j{n}")) for n in range(3)]
    for job in jobs:
        payload = {"path": "input/a.MP4", "bytes": 1, "sha256": None}
        await world.record_event(DELIVERED, job=job.id, host="w1", payload=payload)
        world.provenance.begin(job, "w1")
    for job in jobs:
        await world.provenance.settle(job, "w1")
    assert (len(world.hashed), world.busiest) == (3, 1)


async def test_a_host_that_is_away_is_asked_again_before_anything_is_removed(world: World) -> None:
    await world.delivered("input/a.MP4")
    world.fails["input/a.MP4"] = TransportError(Reason.HOST_UNREACHABLE, "away", where="w1")
    world.provenance.begin(JOB, "w1")
    with pytest.raises(TransportError):
        await world.provenance.settle(JOB, "w1")
    assert not world.hashed and len(world.asked) == 2
    world.fails.clear()
    await world.provenance.settle(JOB, "w1")
    assert len(world.hashed) == 1


async def test_what_cannot_be_read_keeps_nobody_from_going_on(world: World) -> None:
    await world.delivered("input/a.MP4")
    await world.delivered("input/b.MP4")
    missing = Refusal(error="input_missing", message="not there")
    world.fails["input/a.MP4"] = AgentRefusal(missing, where="w1")
    await world.provenance.settle(JOB, "w1")
    assert world.hashed == [("input/b.MP4", "of input/b.MP4")]
