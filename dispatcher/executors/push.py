"""A large file to a host: in blocks, over one to four connections, each block checked there.

What the host has of the file is found by comparing digests of blocks with the file's own, so a push
goes on after whatever cut the one before, and never on something else. SHA-256 of the whole is
taken beside it, for the record.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import xxhash

from dispatcher.core.model import Reason
from dispatcher.errors import AgentRefusal, TransferError
from dispatcher.executors.agent import AgentLink
from dispatcher.executors.base import Progress
from dispatcher.executors.pace import Pace
from dispatcher.executors.transfer import unless_busy
from dispatcher.transport.base import Feed
from worker_agent.protocol import (
    BLOCK_BYTES,
    Arrived,
    Block,
    TakeRequest,
    TransferReport,
)

MOST_STREAMS = 4
NEAR_S = 0.005  # below this round trip one stream fills the link
TRIES = 3
_HASHED_AT_ONCE = 256 << 10  # stays in the processor's cache
PROVING_S = 3600.0  # that a host may take to read a whole file again

Digest = Callable[[bytes | memoryview], bytes]
DIGESTS: dict[str, Digest] = {
    "xxh3_128": xxhash.xxh3_128_digest,
    "sha256": lambda block: hashlib.sha256(block).digest(),
}


@dataclass(frozen=True, slots=True)
class _Version:
    """Of the source: another one is another file."""

    path: Path
    bytes: int
    modified_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> _Version:
        found = path.stat()
        return cls(path, found.st_size, found.st_mtime_ns, found.st_ino)


@dataclass(slots=True)
class _Sending:
    """What is to go, shared by the threads that feed the streams."""

    source: _Version
    digest: Digest
    pace: Pace
    tell: Callable[[int], None]
    digests: list[bytes] = field(default_factory=list)  # of every block, as far as known
    missing: deque[int] = field(default_factory=deque)  # blocks
    there: int = 0  # bytes
    stop: threading.Event = field(default_factory=threading.Event)

    def compare(self, there: Arrived) -> None:
        """Find what the host lacks. Raises OSError."""
        count = -(-self.source.bytes // BLOCK_BYTES)
        self.digests = [b""] * count
        self.missing = deque(range(len(there.digests), count))
        buffer = memoryview(bytearray(BLOCK_BYTES))
        with self.source.path.open("rb", buffering=0) as stream:
            for index, known in enumerate(there.digests[:count]):
                if self.stop.is_set():
                    return
                block = self._read(stream.fileno(), index, buffer)
                self.digests[index] = self.digest(block)
                if self.digests[index].hex() != known:
                    self.missing.append(index)
        if there.published and self.missing:
            self.missing = deque(range(count))  # another file has the name: none of it helps
        self.there = self.source.bytes - sum(self._length(index) for index in self.missing)

    def _length(self, index: int) -> int:
        return min(BLOCK_BYTES, self.source.bytes - index * BLOCK_BYTES)

    def _read(self, descriptor: int, index: int, buffer: memoryview) -> memoryview:
        block = buffer[: self._length(index)]
        if os.preadv(descriptor, [block], index * BLOCK_BYTES) < len(block):
            raise OSError(None, "the file became shorter", str(self.source.path))
        return block

    def feed(self, pipe: int) -> None:
        """Until nothing is missing, the reader is gone or it is stopped. Raises OSError."""
        buffer = memoryview(bytearray(BLOCK_BYTES))
        with self.source.path.open("rb", buffering=0) as stream:
            while not self.stop.is_set():
                try:
                    index = self.missing.popleft()
                except IndexError:
                    return
                block = self._read(stream.fileno(), index, buffer)
                found = self.digests[index] = self.digest(block)
                self._wait(len(block))
                head = Block(offset=index * BLOCK_BYTES, bytes=len(block), digest=found.hex())
                try:
                    write_all(pipe, head.to_json().encode() + b"\n")
                    write_all(pipe, block)
                except BrokenPipeError:
                    return  # why, it says on its output
                self.tell(len(block))

    def _wait(self, count: int) -> None:
        if delay := self.pace.delay_s(count):
            self.stop.wait(delay)

    def last(self) -> bytes:
        """The line that makes a file of the blocks."""
        whole = self.digest(b"".join(self.digests)).hex()
        head = Block(offset=self.source.bytes, bytes=0, digest=whole)
        return head.to_json().encode() + b"\n"

    def sha256(self) -> str:
        """Of the whole source; "" when stopped. Raises OSError."""
        found = hashlib.sha256()
        buffer = memoryview(bytearray(_HASHED_AT_ONCE))
        with self.source.path.open("rb", buffering=0) as stream:
            while not self.stop.is_set() and (count := stream.readinto(buffer)):
                found.update(buffer[:count])
        return "" if self.stop.is_set() else found.hexdigest()


def write_all(pipe: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(pipe, view) :]


@dataclass(slots=True)
class Pusher:
    """Of one host. `streams` None: by the round trip to it."""

    agent: AgentLink
    pace: Pace
    streams: int | None = None
    _hashed: dict[_Version, str] = field(default_factory=dict)  # SHA-256 of what is under way

    async def push(
        self,
        local: Path,
        run_dir: str,
        path: str,
        *,
        sha256: str | None = None,
        progress: Progress | None = None,
    ) -> TransferReport:
        """`local` to `run_dir`/`path`; the report has its SHA-256, and what crossed as `seconds`.

        Raises TransferError (it changed, it cannot be read, it is not `sha256`), TransportError,
        AgentRefusal, OSError. The next push goes on from what has arrived.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        source = _Version.of(local)
        told = 0

        def tell(more: int) -> None:
            nonlocal told
            told += more
            if progress:
                progress(told, source.bytes)

        def tell_from_thread(more: int) -> None:
            loop.call_soon_threadsafe(tell, more)

        sending = _Sending(source, DIGESTS["sha256"], self.pace, tell_from_thread)
        pool = ThreadPoolExecutor(MOST_STREAMS + 2, thread_name_prefix="push")
        try:
            hashing = self._hashing(sending, pool)
            take = TakeRequest(
                run_dir=run_dir, path=path, bytes=source.bytes, algorithms=tuple(DIGESTS)
            )
            for tries in range(1, TRIES + 1):
                told = 0
                try:
                    await self._send(sending, take, pool, hashing, sha256)
                    break
                except AgentRefusal as refusal:
                    if refusal.reason is not Reason.TRANSFER_CORRUPT or tries == TRIES:
                        raise
            found = await hashing
            self._check(source, found, sha256)
            self._hashed.pop(source, None)
        finally:
            sending.stop.set()
            pool.shutdown(wait=False)
        return TransferReport(
            path=path, bytes=source.bytes, sha256=found, complete=True,
            seconds=loop.time() - began,
        )  # fmt: skip

    def _hashing(self, sending: _Sending, pool: ThreadPoolExecutor) -> asyncio.Future[str]:
        loop = asyncio.get_running_loop()
        known = self._hashed.get(sending.source)
        if known is not None:
            told: asyncio.Future[str] = loop.create_future()
            told.set_result(known)
            return told
        hashing = loop.run_in_executor(pool, sending.sha256)

        def keep(ended: asyncio.Future[str]) -> None:
            if not ended.cancelled() and ended.exception() is None and ended.result():
                self._hashed[sending.source] = ended.result()

        hashing.add_done_callback(keep)
        return hashing

    async def _send(
        self,
        sending: _Sending,
        take: TakeRequest,
        pool: ThreadPoolExecutor,
        hashing: asyncio.Future[str],
        sha256: str | None,
    ) -> None:
        """All that is missing, then the word that it is whole, once it is what it should be."""
        loop = asyncio.get_running_loop()
        streams = await self._streams_for(take.bytes)
        alone = streams == 1
        feeds = await self._open(replace(take, shared=not alone), streams)
        feeding: list[asyncio.Future[None]] = []
        try:
            there = await self.agent.next_reply("take", feeds[0], Arrived)
            sending.digest = DIGESTS[there.algorithm]
            await loop.run_in_executor(pool, sending.compare, there)
            sending.tell(sending.there)
            if there.published and not sending.missing:
                return
            feeding = [loop.run_in_executor(pool, sending.feed, feed.pipe) for feed in feeds]
            await asyncio.gather(*feeding)
            whole = not sending.missing
            if whole and sha256 is not None:
                self._check(sending.source, await hashing, sha256)
            self._check(sending.source, None, None)
            if whole and alone:
                await loop.run_in_executor(pool, _say, feeds[0].pipe, sending.last())
            reports = [await self._report(feed) for feed in feeds]
        finally:
            for feed in feeds:
                feed.kill()
            if feeding:
                await asyncio.wait(feeding)  # a pipe must not be closed under its writer
            for feed in feeds:
                await feed.close()
        if not alone:
            take = replace(take, compare=False)
            reports = await self.agent.call(
                "take", take, TransferReport, body=sending.last(), slow=True, timeout_s=PROVING_S
            )
        if not reports or not reports[-1].complete:
            raise TransferError(
                Reason.TRANSFER_FAILED, f"{sending.source.path} did not arrive whole",
                where=self.agent.name, why="the host took no more of it",
            )  # fmt: skip

    async def _streams_for(self, size: int) -> int:
        streams = self.streams
        if streams is None:
            round_trip_s = await self.agent.round_trip_s()
            near = round_trip_s is not None and round_trip_s < NEAR_S
            streams = 1 if near else MOST_STREAMS
        return max(1, min(streams, size // BLOCK_BYTES))

    async def _open(self, take: TakeRequest, count: int) -> list[Feed]:
        """The first one compares; of the others, as many as there can be. Raises HostError."""
        opening = [asyncio.ensure_future(self._feed(take))]
        opening += [
            asyncio.ensure_future(self._feed(replace(take, compare=False))) for _ in range(1, count)
        ]
        try:
            await asyncio.wait(opening)
            first = opening[0].result()
        except BaseException:
            for one in opening:
                one.cancel()
            for got in await asyncio.gather(*opening, return_exceptions=True):
                if not isinstance(got, BaseException):
                    await got.close()
            raise
        return [first, *(one.result() for one in opening[1:] if one.exception() is None)]

    async def _feed(self, request: TakeRequest) -> Feed:
        return await unless_busy(functools.partial(self.agent.feed, "take", request))

    async def _report(self, feed: Feed) -> TransferReport:
        done = await feed.finish()
        self.agent.check("take", done)
        return self.agent.decode("take", done.stdout.strip(), TransferReport)

    def _check(self, source: _Version, found: str | None, wanted: str | None) -> None:
        """Raises TransferError when the source changed, or is not what it is said to be."""
        if _Version.of(source.path) != source:
            why, fix = "it changes while it is sent", "Check that nothing writes it"
        elif found is not None and wanted not in (None, found):
            why, fix = f"its SHA-256 is {found}, not {wanted}", "Check the disk it lies on"
        else:
            return
        raise TransferError(
            Reason.TRANSFER_CORRUPT, f"{source.path} cannot be sent", where=self.agent.name,
            why=why, fix=fix,
        )  # fmt: skip


def _say(pipe: int, line: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):  # why, it says on its output
        write_all(pipe, line)
