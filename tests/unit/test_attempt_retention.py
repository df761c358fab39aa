"""Whose newest attempt may go: that of a job that is over, or that went elsewhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from dispatcher.attempt_retention import PRUNED, AttemptRetention
from dispatcher.core.model import JobState, Reason
from dispatcher.errors import HostError, TransportError
from worker_agent.protocol import PruneReport

JOBS = {
    "done": (JobState.DONE, "w1"),
    "held": (JobState.HELD, "w1"),
    "queued": (JobState.QUEUED, "w1"),
    "moved": (JobState.QUEUED, "w2"),
}


class World:
    """A store, and one host that has an old newest attempt of each job."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[str, ...], float, int]] = []
        self.events: list[tuple[str, str, dict[str, int]]] = []
        self.fails: HostError | None = None
        self.older = 2
        self.retention = AttemptRetention(
            fleet=cast(Any, SimpleNamespace(executor=lambda _: self)), store=cast(Any, self),
            epoch=7, keep_s=60.0,
        )  # fmt: skip

    async def job(self, name: str) -> Any:
        if name not in JOBS:
            return None
        state, host = JOBS[name]
        return SimpleNamespace(state=state, host=host)

    async def record_event(self, kind: str, *, host: str, payload: dict[str, int]) -> None:
        self.events.append((kind, host, payload))

    async def prune(self, over: tuple[str, ...], keep_s: float, *, epoch: int) -> PruneReport:
        if self.fails is not None:
            raise self.fails
        self.asked.append((over, keep_s, epoch))
        count = len(over) or self.older
        waiting = () if over else ("reef/unknown", *(f"reef/{name}" for name in JOBS))
        return PruneReport(
            attempts=count, removed_bytes=10 * count, freed_bytes=4096 * count, waiting=waiting
        )


async def test_what_is_over_goes_and_is_told() -> None:
    world = World()
    await world.retention.host("w1")
    assert world.asked == [((), 60.0, 7), (("reef/done", "reef/moved"), 60.0, 7)]
    told = {"attempts": 2, "removed_bytes": 20, "freed_bytes": 8192}
    assert world.events == [(PRUNED, "w1", told)] * 2


async def test_where_nothing_went_nothing_is_told() -> None:
    world = World()
    world.older = 0
    await world.retention.host("w3")
    assert world.asked[1][0] == ("reef/done", "reef/held", "reef/queued", "reef/moved")
    assert len(world.events) == 1


async def test_a_host_that_is_away_is_left_for_the_next_time() -> None:
    world = World()
    world.fails = TransportError(Reason.HOST_UNREACHABLE, "away", where="w1")
    await world.retention.host("w1")
    assert world.events == []
