"""Thirty pushes that are cut at random offsets, each until it is through: whatever cuts them, the
file that gets its name is the one that was sent, and no .part is ever taken for it.

COSMA_CUTS_MIB gives the files another size than a few MiB, COSMA_CUTS_SEED repeats the cuts of a
run that failed (which says its seed).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from dispatcher import agent_bundle
from dispatcher.core.model import Reason
from dispatcher.errors import HostError, TransportError
from dispatcher.executors.ssh import SshExecutor
from dispatcher.executors.transfer import file_sha256
from dispatcher.inventory_model import InventoryHost
from tests.conftest import REPOSITORY
from tests.small_disk import MIB, memory_disk
from tests.sshd import Farm, Sshd, farm
from worker_agent.protocol import TransferReport

__all__ = ["farm"]

PUSHES = 30
# What a camera, a person and another system's encoding make of a name.
NAMES = (
    b"plain.MP4",
    b"with space.MP4",
    b'it\'s "quoted".MP4',
    b"new\nline.MP4",
    b"-rf --help",
    b"$(touch owned) `id`;&|*?[a]\\.MP4",
    "übergröße 海底 🐟.MP4".encode(),
    b"latin1 \xe9\xff\xfe.MP4",
    b"deep/er/clip.MP4",
)
CUTS = ("session", "link", "full disk", "session", "link", "full disk", "dispatcher")
_DISPATCHER = """
import asyncio, json, os, sys
from pathlib import Path
from dispatcher import agent_bundle
from dispatcher.executors.ssh import SshExecutor
from dispatcher.inventory_model import InventoryHost

host, local, run_dir, path, at = json.loads(sys.argv[1])

def told(there, size):
    if there >= at:
        print(there, flush=True)  # and is killed

async def main():
    executor = SshExecutor.connect_to(InventoryHost.model_validate(host), agent_bundle.build())
    await executor.push_file(Path(local), run_dir, path, progress=told)
    print("through", flush=True)

asyncio.run(main())
"""


@dataclass(slots=True)
class Link:
    """A forwarder between the dispatcher and a host: what goes through it can be cut."""

    port: int
    server: asyncio.Server | None = None
    ends: set[asyncio.StreamWriter] = field(default_factory=set)

    async def open(self) -> int:
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self.server.sockets[0].getsockname()[1]
        return port

    async def _accept(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        try:
            far, there = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            back.transport.abort()
            return
        self.ends |= {back, there}
        try:
            await asyncio.gather(self._carry(near, there), self._carry(far, back))
        finally:
            self.ends -= {back, there}

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while (data := await source.read(1 << 16)) and not sink.is_closing():
                sink.write(data)
                await sink.drain()
        sink.close()

    def cut(self) -> None:
        for end in list(self.ends):
            end.transport.abort()

    async def close(self) -> None:
        if self.server is not None:
            self.server.close()
        while self.ends:
            self.cut()
            await asyncio.sleep(0)  # each connection's own task sees that it has ended


@dataclass(slots=True)
class Pushes:
    """One host, reached through a link that can be cut, over one connection or several."""

    server: Sshd
    link: Link
    ports: int
    chance: random.Random
    cuts: Counter[str] = field(default_factory=Counter)
    executors: dict[int, SshExecutor] = field(default_factory=dict)

    def host(self, streams: int) -> InventoryHost:
        return self.server.inventory_host(
            python=sys.executable, port=self.ports, transfer={"streams": streams}
        )

    def executor(self, streams: int) -> SshExecutor:
        if streams not in self.executors:
            self.executors[streams] = SshExecutor.connect_to(
                self.host(streams), agent_bundle.build()
            )
        return self.executors[streams]

    async def push(self, number: int, source: Path, run_dir: str, path: str) -> None:
        """Until it is through; the first try is cut."""
        kind = CUTS[number % len(CUTS)]
        streams = self.chance.choice((1, 1, 2, 4))
        at = self.chance.randrange(source.stat().st_size)
        if await self._cut(kind, at, streams, source, run_dir, path):
            self.cuts[kind] += 1
            target = Path(run_dir) / path
            assert not target.exists(), f"{target} has its name before it is whole"
        report = await self._through(streams, source, run_dir, path)
        assert report.complete and report.sha256 == file_sha256(source)

    async def _through(self, streams: int, source: Path, run_dir: str, path: str) -> TransferReport:
        """A link that has just been lost may need a second connection to find that out."""
        for _ in range(3):
            with contextlib.suppress(TransportError):
                return await self.executor(streams).push_file(source, run_dir, path)
        return await self.executor(streams).push_file(source, run_dir, path)

    async def _cut(
        self, kind: str, at: int, streams: int, source: Path, run_dir: str, path: str
    ) -> bool:
        """Whether it did not get through."""
        if kind == "dispatcher":
            return await self._kill_dispatcher(at, streams, source, run_dir, path)
        ballast = self.server.work_dir / "ballast"

        def told(there: int, size: int) -> None:
            if there < at or (there == size and kind == "full disk"):
                return
            if kind == "session":
                self.server.kill_sessions()
            elif kind == "link":
                self.link.cut()
            elif not ballast.exists():
                facts = os.statvfs(self.server.work_dir)
                with contextlib.suppress(OSError), ballast.open("wb") as stream:
                    stream.write(bytes(facts.f_bavail * facts.f_frsize))

        try:
            await self.executor(streams).push_file(source, run_dir, path, progress=told)
        except HostError as error:
            wanted = Reason.DISK_FULL if kind == "full disk" else Reason.HOST_UNREACHABLE
            assert error.reason is wanted, (kind, error.line)
            return True
        finally:
            ballast.unlink(missing_ok=True)
        return False

    async def _kill_dispatcher(
        self, at: int, streams: int, source: Path, run_dir: str, path: str
    ) -> bool:
        host = self.host(streams).model_dump(mode="json")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _DISPATCHER,
            json.dumps([host, str(source), run_dir, path, at]),
            stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        assert process.stdout is not None
        await process.stdout.readline()
        process.kill()
        rest = await process.stdout.read()
        await process.wait()
        return b"through" not in rest and not (Path(run_dir) / path).exists()

    async def close(self) -> None:
        for executor in self.executors.values():
            await executor.close()


@pytest.fixture
def size() -> int:
    return round(float(os.environ.get("COSMA_CUTS_MIB", "5.3")) * MIB)


@pytest.fixture
def server(farm: Farm, size: int) -> Iterator[Sshd]:
    """Its work directory is a file system of its own, with room for three of the files."""
    place = farm.directory / "alpha" / "work"
    with memory_disk(place, 3 * size // MIB + 8):
        made = farm.start()
        yield made
        made.stop()
        while any(str(place).encode() in line for line in _command_lines()):
            time.sleep(0.02)  # the agents end by themselves, and tell nobody


def _command_lines() -> Iterator[bytes]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                yield (entry / "cmdline").read_bytes()


@pytest_asyncio.fixture
async def pushes(server: Sshd) -> AsyncIterator[Pushes]:
    seed = int(os.environ.get("COSMA_CUTS_SEED", random.randrange(1 << 32)))
    print(f"COSMA_CUTS_SEED={seed}")
    link = Link(server.port)
    made = Pushes(server, link, await link.open(), random.Random(seed))
    await made.executor(1).probe()  # unpacks the agent there, which then starts sooner
    yield made
    await made.close()
    await link.close()


async def left_beside(there: Path) -> list[str]:
    """Names, once they are final: an agent that was cut off may look at the finished file still,
    and has a .part meanwhile."""
    while True:
        at_work = any(b"\0take\0" in line for line in _command_lines())
        names = [path.name for path in there.parent.iterdir()]
        if names == [there.name] or not at_work:
            return names
        await asyncio.sleep(0.02)


async def test_every_push_that_was_cut_comes_through_whole(
    pushes: Pushes, size: int, tmp_path: Path
) -> None:
    content = random.Random(size).randbytes(size)
    for number in range(PUSHES):
        name = os.fsdecode(NAMES[number % len(NAMES)])
        source = tmp_path / "here" / str(number) / name
        source.parent.mkdir(parents=True)
        source.write_bytes(number.to_bytes(8) + content)
        run_dir = str(pushes.server.work_dir / "reef" / f"job-{number}")
        await pushes.push(number, source, run_dir, f"input/{name}")
        there = Path(run_dir) / "input" / name
        assert file_sha256(there) == file_sha256(source)
        assert await left_beside(there) == [there.name]
        there.unlink()
        source.unlink()
    assert not list(tmp_path.rglob("owned"))
    assert set(pushes.cuts) == set(CUTS), "each kind has cut a push"
    assert sum(pushes.cuts.values()) >= PUSHES // 2
