"""Pushes of large files: what must arrive, and what must never get its name."""

from __future__ import annotations

import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from dispatcher import agent_bundle
from dispatcher.core.model import Reason
from dispatcher.errors import TransferError, TransportError
from dispatcher.executors import push
from dispatcher.executors.ssh import SshExecutor
from dispatcher.executors.transfer import file_sha256
from dispatcher.transport.base import Feed
from tests.sshd import Farm, Sshd, farm
from worker_agent.protocol import TakeRequest

__all__ = ["farm"]

DATA = random.Random(11).randbytes(5_400_000)


@pytest.fixture
def server(farm: Farm) -> Sshd:
    return farm.start()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = tmp_path / "clip.MP4"
    made.write_bytes(DATA)
    return made


@pytest.fixture
def run_dir(server: Sshd) -> Path:
    return server.work_dir / "reef" / "a-1"


@pytest_asyncio.fixture(params=[1, 4], ids=["one stream", "four"])
async def executor(server: Sshd, request: pytest.FixtureRequest) -> AsyncIterator[SshExecutor]:
    host = server.inventory_host(
        python=sys.executable, transfer={"streams": request.param, "limit_mib_s": 500}
    )
    made = SshExecutor.connect_to(host, agent_bundle.build())
    yield made
    await made.close()


async def test_a_file_and_its_next_version_arrive_whole(
    executor: SshExecutor, source: Path, run_dir: Path
) -> None:
    target = run_dir / "input" / "clip"
    told: list[int] = []
    for content in (DATA, bytes(reversed(DATA)), DATA[:-1]):
        source.write_bytes(content)
        told.clear()
        report = await executor.push_file(
            source, str(run_dir), "input/clip", progress=lambda there, _: told.append(there)
        )
        assert (report.bytes, report.sha256) == (len(content), file_sha256(source))
        assert target.read_bytes() == content
        assert told[-1] == len(content) and told == sorted(told)
        assert [path.name for path in target.parent.iterdir()] == ["clip"]
    inode = target.stat().st_ino
    await executor.push_file(source, str(run_dir), "input/clip")
    assert target.stat().st_ino == inode, "what is there already is left alone"


async def test_what_is_not_the_file_that_is_meant_gets_no_name(
    executor: SshExecutor, source: Path, run_dir: Path
) -> None:
    with pytest.raises(TransferError, match="its SHA-256 is") as other:
        await executor.push_file(source, str(run_dir), "input/clip", sha256="0" * 64)
    assert other.value.reason is Reason.TRANSFER_CORRUPT

    def append(there: int, size: int) -> None:
        with source.open("ab") as stream:
            stream.write(b"more")

    with pytest.raises(TransferError, match="it changes while it is sent"):
        await executor.push_file(source, str(run_dir), "input/clip", progress=append)
    assert not (run_dir / "input" / "clip").exists()


@pytest.mark.parametrize("executor", [4], ids=["four"], indirect=True)
async def test_one_stream_of_four_is_enough(
    executor: SshExecutor, source: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server takes only so many new connections at once, and may drop the rest."""
    feed = push.Pusher._feed

    async def only_the_first(self: push.Pusher, request: TakeRequest) -> Feed:
        if request.compare:
            return await feed(self, request)
        raise TransportError(Reason.HOST_UNREACHABLE, "dropped", where="alpha")

    monkeypatch.setattr(push.Pusher, "_feed", only_the_first)
    assert (await executor.push_file(source, str(run_dir), "input/clip")).complete
    assert (run_dir / "input" / "clip").read_bytes() == DATA


async def test_a_host_that_lacks_the_fast_digest_is_served_too(
    executor: SshExecutor, source: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(push.DIGESTS, "xxh3_128")
    report = await executor.push_file(
        source, str(run_dir), "input/clip", sha256=file_sha256(source)
    )
    assert report.complete and (run_dir / "input" / "clip").read_bytes() == DATA


async def test_the_child_trusts_no_other_host_key(
    executor: SshExecutor, source: Path, run_dir: Path, server: Sshd, farm: Farm
) -> None:
    """What answers at the address for the large file is not the host that is connected."""
    await executor.probe()
    port = server.port
    server.process.terminate()  # the listener; connections stay
    server.process.wait()
    impostor = farm.start("impostor", port=port)
    with pytest.raises(TransportError) as caught:
        await executor.push_file(source, str(run_dir), "input/clip")
    assert caught.value.reason is Reason.HOST_KEY_MISMATCH
    assert not list(impostor.directory.rglob("clip*"))
