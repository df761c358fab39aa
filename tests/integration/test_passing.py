"""A file that only the dispatcher reaches goes through it to the host that needs it."""

from __future__ import annotations

import hashlib
import os
import random
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from dispatcher import agent_bundle
from dispatcher.core.model import Reason
from dispatcher.errors import AgentRefusal, TransferError
from dispatcher.executors.base import Read
from dispatcher.executors.ssh import SshExecutor
from dispatcher.reading import read_remote
from tests.agent_client import script
from tests.sshd import Farm, farm
from worker_agent.protocol import TransferReport

__all__ = ["farm"]

DATA = random.Random(4).randbytes(3_300_000)
SHA = hashlib.sha256(DATA).hexdigest()


@dataclass(frozen=True, slots=True)
class World:
    """A store that only this machine's own ssh knows, as `nas`, and two hosts."""

    source: Path  # on all of them
    host: SshExecutor
    other: SshExecutor
    target: Path

    async def bring(self, read: Read, size: int = len(DATA), sha256: str | None = None) -> int:
        """Bytes that the host took."""
        before = self.target.stat().st_ino if self.target.exists() else 0
        report = await self.host.pass_file(
            read, size, str(self.target.parent.parent), "input/clip.MP4", sha256=sha256,
            progress=lambda *_: None,
        )  # fmt: skip
        assert report == TransferReport(
            path="input/clip.MP4", bytes=size, sha256=sha256, complete=True, seconds=report.seconds
        )
        assert self.target.read_bytes() == DATA
        assert [path.name for path in self.target.parent.iterdir()] == ["clip.MP4"]
        return 0 if self.target.stat().st_ino == before else size

    def from_store(self) -> AsyncGenerator[bytes, None]:
        return read_remote("nas", str(self.source))

    def from_host(self) -> AsyncGenerator[bytes, None]:
        return self.other.read_file(str(self.source), len(DATA))


@pytest_asyncio.fixture
async def world(
    farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    store, other, server = (farm.start(name) for name in ("store", "other", "host"))
    known, config = tmp_path / "known", tmp_path / "config"
    known.write_text(f"nas {store.host_key}\n")
    config.write_text(
        f"Host nas\n HostName 127.0.0.1\n HostKeyAlias nas\n Port {store.port}\n"
        f" IdentityFile {store.client_key}\n UserKnownHostsFile {known}\n"
    )
    programs = tmp_path / "bin"
    programs.mkdir()
    choose = f'case " $* " in *" nas "*) set -- -F {config} "$@";; esac'
    script(programs / "ssh", f'#!/bin/sh\n{choose}\nexec /usr/bin/ssh "$@"\n')
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    hosts = [
        SshExecutor.connect_to(one.inventory_host(python=sys.executable), agent_bundle.build())
        for one in (server, other)
    ]
    source = tmp_path / os.fsdecode(b"it's \xff \n.MP4")
    source.write_bytes(DATA)
    yield World(source, *hosts, server.work_dir / "reef" / "a-1" / "input" / "clip.MP4")
    for host in hosts:
        await host.close()


async def test_from_a_store_and_from_a_host_and_again(world: World) -> None:
    assert await world.bring(world.from_store, sha256=SHA) == len(DATA)
    assert await world.bring(world.from_store) == 0, "it is there"
    world.target.write_bytes(bytes(len(DATA)))
    assert await world.bring(world.from_host) == len(DATA), "another file had its name"


async def test_it_goes_on_from_what_is_there(world: World) -> None:
    world.target.parent.mkdir(parents=True)
    part = world.target.with_name("clip.MP4.part")
    part.write_bytes(DATA[: 2 << 20] + b"something else" * 1000)
    kept = part.stat().st_ino
    await world.bring(world.from_host)
    assert world.target.stat().st_ino == kept


async def test_what_cannot_be_brought_says_why_and_leaves_nothing(world: World) -> None:
    with pytest.raises(TransferError, match="SHA-256 is") as wrong:
        await world.bring(world.from_store, sha256="0" * 64)
    with pytest.raises(TransferError, match="not what was announced") as longer:
        await world.bring(world.from_store, size=len(DATA) - 1)
    with pytest.raises(TransferError, match="not what was announced") as shorter:
        await world.bring(world.from_store, size=len(DATA) + 1)
    assert {e.value.reason for e in (wrong, longer, shorter)} == {Reason.TRANSFER_CORRUPT}
    world.source.unlink()
    with pytest.raises(TransferError, match="No such file"):
        await world.bring(world.from_store)
    with pytest.raises(AgentRefusal, match="not a file on its host") as gone:
        await world.bring(world.from_host)
    assert gone.value.reason is Reason.INPUT_MISSING
    with pytest.raises(TransferError, match="resolve hostname"):
        await world.bring(lambda: read_remote("nobody.invalid", "/x"))
    assert not world.target.exists()
