"""By which way an input comes to a host, and what is said when it is not the shortest."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dispatcher.core.model import Reason
from dispatcher.errors import AgentRefusal, HostError, TransferError
from dispatcher.executors.base import Read
from dispatcher.input_delivery import Bringing
from dispatcher.input_progress import Arriving
from dispatcher.jobspec import Input
from worker_agent.protocol import FetchRequest, Peer, Refusal, TransferReport

PEER = Peer(destination="giver", port=None, host_key="ssh-ed25519 A", private_key="secret")
LARGE = 10 << 20
REPORT = TransferReport(path="", bytes=LARGE, sha256="c0ffee", complete=True)


@dataclass
class Host:
    """Notes what it is asked; `fails` are the ways that do not work."""

    name: str
    fails: dict[str, HostError] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)

    async def work_dir(self) -> str:
        return f"/data/{self.name}"

    async def fetch(self, request: FetchRequest) -> TransferReport:
        self.asked.append(request)
        way = "direct" if request.peer else "pulled"
        if way in self.fails:
            raise self.fails[way]
        return REPORT

    async def push_file(
        self, local: Path, run_dir: str, path: str, **options: Any
    ) -> TransferReport:
        if not local.is_file():
            raise TransferError(Reason.INPUT_MISSING, "no such file", where=str(local))
        self.asked.append(("pushed", str(local), options["sha256"]))
        options["progress"](7, LARGE)
        return REPORT

    async def pass_file(
        self, read: Read, size: int, run_dir: str, path: str, **options: Any
    ) -> TransferReport:
        async with aclosing(read()) as parts:
            self.asked.append(("relayed", [part async for part in parts], size, options["sha256"]))
        if "relayed" in self.fails:
            raise self.fails["relayed"]
        return REPORT

    async def read_file(self, path: str, size: int) -> AsyncGenerator[bytes, None]:
        yield f"{path} of {self.name}".encode()

    @asynccontextmanager
    async def granted(self, path: str, epoch: int, verb: str) -> AsyncIterator[Peer]:
        self.asked.append(("granted", path, epoch))
        if "granted" in self.fails:
            raise self.fails["granted"]
        try:
            yield PEER
        finally:
            self.asked.append("taken back")


def refusal(error: str) -> AgentRefusal:
    return AgentRefusal(Refusal(error=error, message=error), where="taker")


class World:
    def __init__(self) -> None:
        self.hosts = {name: Host(name) for name in ("giver", "taker")}
        fleet = SimpleNamespace(state=self.hosts.get, executor=self.hosts.__getitem__)
        nothing = cast(Any, None)
        self.bringing = Bringing(
            fleet=cast(Any, fleet), store=nothing, collecting=nothing, specs=nothing, clock=nothing,
            epoch=3,
        )  # fmt: skip
        self.arriving = Arriving(LARGE)

    async def bring(self, item: Input, host: str = "taker") -> tuple[str, str]:
        executor = cast(Any, self.hosts[host])
        brought = await self.bringing._bring(executor, "/run", item, host, self.arriving)
        assert brought.sha256 == REPORT.sha256
        return brought.route, brought.note


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def made(tmp_path: Path) -> Input:
    local = tmp_path / "a.ply"
    local.write_bytes(b"ply")
    return Input(
        path="input/a.ply", local=str(local), bytes=LARGE, sha256="ab", made_on="giver",
        made_at="reef/a/output/a.ply",
    )  # fmt: skip


def video(source: str) -> Input:
    return Input(path="input/a.MP4", local=source, pull=source, bytes=LARGE)


async def test_what_a_host_made_goes_straight_from_there(world: World, made: Input) -> None:
    assert await world.bring(made) == ("direct", "")
    path = "/data/giver/reef/a/output/a.ply"
    assert world.hosts["giver"].asked == [("granted", path, 3), "taken back"]
    (request,) = world.hosts["taker"].asked
    assert (request.source, request.peer, request.sha256) == (path, PEER, "ab")


async def test_on_the_host_itself_it_is_copied(world: World, made: Input) -> None:
    assert await world.bring(made, "giver") == ("local", "")
    (request,) = world.hosts["giver"].asked
    assert request.peer is None and request.source == "/data/giver/reef/a/output/a.ply"


async def test_by_way_of_here_it_says_why(world: World, made: Input) -> None:
    world.hosts["giver"].fails["granted"] = refusal("input_missing")
    route, note = await world.bring(made)
    assert route == "pushed" and "not straight from giver" in note and "input_missing" in note
    assert world.hosts["taker"].asked == [("pushed", made.local, "ab")]
    assert world.arriving.there == {made.path: 7}


@pytest.mark.parametrize("error", ["disk_full", "transfer_corrupt", "stale_epoch"])
async def test_what_no_other_way_would_mend_is_raised(
    world: World, made: Input, error: str
) -> None:
    world.hosts["taker"].fails["direct"] = refusal(error)
    with pytest.raises(AgentRefusal, match=error):
        await world.bring(made)
    assert world.hosts["giver"].asked[-1] == "taken back"
    assert len(world.hosts["taker"].asked) == 1


async def test_a_small_file_that_lies_here_is_pushed(world: World, made: Input) -> None:
    small = Input(**{f: getattr(made, f) for f in made.__slots__} | {"bytes": 1000})
    assert await world.bring(small) == ("pushed", "")
    assert world.hosts["giver"].asked == []


async def test_a_video_of_a_host_of_the_farm_comes_by_a_key(world: World) -> None:
    assert await world.bring(video("giver:/survey/a:b.MP4")) == ("direct", "")
    assert world.hosts["giver"].asked[0] == ("granted", "/survey/a:b.MP4", 3)


async def test_else_by_the_own_ssh_of_the_host(world: World) -> None:
    assert await world.bring(video("nas:/survey/a.MP4")) == ("pulled", "")
    unreachable = TransferError(Reason.TRANSFER_FAILED, "no route", where="taker")
    world.hosts["taker"].fails["direct"] = unreachable
    route, note = await world.bring(video("giver:/survey/a.MP4"))
    assert route == "pulled" and "no route" in note
    assert [request.source for request in world.hosts["taker"].asked] == [
        "nas:/survey/a.MP4",
        "/survey/a.MP4",
        "giver:/survey/a.MP4",
    ]


async def test_what_only_the_dispatcher_reaches_goes_through_it(world: World) -> None:
    taker = world.hosts["taker"]
    taker.fails |= {"direct": refusal("transfer_failed"), "pulled": refusal("transfer_failed")}
    route, note = await world.bring(video("giver:/survey/a.MP4"))
    assert route == "relayed"
    assert "not straight from giver: " in note and "; not pulled by taker: " in note
    assert taker.asked[-1] == ("relayed", [b"/survey/a.MP4 of giver"], LARGE, None)
    taker.fails["relayed"] = TransferError(Reason.TRANSFER_FAILED, "no", where="x", why="closed")
    with pytest.raises(TransferError, match="closed; not straight from giver"):
        await world.bring(video("giver:/survey/a.MP4"))
    taker.fails["pulled"] = refusal("input_missing")
    with pytest.raises(AgentRefusal, match="input_missing"):
        await world.bring(video("nas:/survey/a.MP4"))


async def test_a_source_that_is_gone_says_so(world: World, made: Input) -> None:
    Path(made.local).unlink()

    async def bring_back(_: Path) -> bool:
        return False

    object.__setattr__(world.bringing, "collecting", SimpleNamespace(bring_back=bring_back))
    gone = Input(path=made.path, local=made.local, bytes=LARGE)
    with pytest.raises(TransferError) as caught:
        await world.bring(gone)
    assert caught.value.reason is Reason.INPUT_MISSING
