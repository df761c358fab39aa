"""A file that neither lies here nor can be pulled by the host that needs it: its bytes come here
and go on to that host, in order, with a digest of each block as in a push. None are kept here."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from dispatcher.core.model import Reason
from dispatcher.errors import AgentRefusal, TransferError
from dispatcher.executors.agent import AgentLink
from dispatcher.executors.base import Progress, Read
from dispatcher.executors.pace import Pace
from dispatcher.executors.push import DIGESTS, Digest, write_all
from dispatcher.executors.transfer import unless_busy
from dispatcher.transport.base import Feed
from worker_agent.protocol import (
    BLOCK_BYTES,
    Arrived,
    Block,
    GiveRequest,
    TakeRequest,
    TransferReport,
)


async def read_file(agent: AgentLink, path: str, size: int) -> AsyncGenerator[bytes, None]:
    """A file of the agent's host, an absolute path. Raises HostError."""
    algorithms = list(DIGESTS)
    while True:
        try:
            async for block in _given(agent, path, size, algorithms.pop(0)):
                yield block
            return
        except AgentRefusal as refusal:
            # It may have no library for the fast one; nothing has come then.
            if refusal.refusal.error != "bad_request" or not algorithms:
                raise


async def _given(
    agent: AgentLink, path: str, size: int, algorithm: str
) -> AsyncGenerator[bytes, None]:
    digest = DIGESTS[algorithm]
    stream = await agent.open("give")
    try:
        request = GiveRequest(path=path, bytes=size, algorithm=algorithm, digests=())
        await stream.write(request.to_json().encode() + b"\n")
        await stream.write_eof()
        while (head := await agent.first_reply("give", stream, Block)).bytes:
            block = await stream.read_exactly(head.bytes)
            if (await asyncio.to_thread(digest, block)).hex() != head.digest:
                raise TransferError(
                    Reason.TRANSFER_CORRUPT, f"{path} did not come whole", where=agent.name,
                    why=f"the block at byte {head.offset} is not what was sent",
                    fix="Check the memory of both machines",
                )  # fmt: skip
            yield block
        agent.check("give", await stream.finish())
    finally:
        await stream.close()


@dataclass(frozen=True, slots=True)
class _Read:
    """What one reading of the file showed."""

    digests: tuple[bytes, ...]
    sha256: str | None  # taken where it is to be compared
    same: bool  # as what was known of it


async def pass_on(
    agent: AgentLink,
    pace: Pace,
    read: Read,
    take: TakeRequest,
    *,
    sha256: str | None,
    progress: Progress,
) -> TransferReport:
    """To the agent's host. What it has already is read again, but not sent again.

    Raises TransferError where the file has another size or is not `sha256`, TransportError,
    AgentRefusal, and what `read` raises.
    """
    began = time.monotonic()
    feed = await unless_busy(functools.partial(agent.feed, "take", take))
    passing = _Passing(agent, pace, read, take, progress, sha256 is not None)
    try:
        there = await agent.next_reply("take", feed, Arrived)
        digest = DIGESTS[there.algorithm]
        found = await passing.read_through(digest, there.digests, None if there.published else feed)
        if there.published and not found.same:  # another file has the name: none of it helps
            found = await passing.read_through(digest, (), feed)
        elif there.published:
            await feed.finish()
            return passing.report(found, sha256, began)
        report = passing.report(found, sha256, began)
        last = Block(offset=take.bytes, bytes=0, digest=digest(b"".join(found.digests)).hex())
        await passing.write(feed, last)
        await passing.written(feed)
        await passing.check_ended(feed)
        return report
    finally:
        feed.kill()
        if passing.writing is not None:
            await asyncio.wait({passing.writing})  # a pipe must not be closed under its writer
            passing.writing.exception()  # what it was, something else has told
        await feed.close()


@dataclass(slots=True)
class _Passing:
    agent: AgentLink
    pace: Pace
    source: Read
    take: TakeRequest
    progress: Progress
    hashed: bool  # SHA-256, too
    writing: asyncio.Future[None] | None = None

    async def read_through(self, digest: Digest, known: Sequence[str], feed: Feed | None) -> _Read:
        """All of the file. What is not as `known` goes into `feed`, if there is one: each block
        while the next one is read."""
        whole = hashlib.sha256() if self.hashed else None
        digests: list[bytes] = []
        same, at = True, 0
        async with aclosing(_blocks(self.source())) as blocks:
            async for block in blocks:
                found = await asyncio.to_thread(_digests, digest, block, whole)
                if len(digests) >= len(known) or known[len(digests)] != found.hex():
                    same = False
                    if feed is not None:
                        head = Block(offset=at, bytes=len(block), digest=found.hex())
                        await asyncio.sleep(self.pace.delay_s(len(block)))
                        await self.write(feed, head, block)
                digests.append(found)
                at += len(block)
                if at > self.take.bytes:
                    break
                self.progress(at, self.take.bytes)
        if at != self.take.bytes:
            raise TransferError(
                Reason.TRANSFER_CORRUPT, f"{self.take.path} is not what was announced",
                where=self.agent.name, why=f"it has not the {self.take.bytes} bytes that it had",
                fix="ingest it again",
            )  # fmt: skip
        return _Read(tuple(digests), whole.hexdigest() if whole else None, same)

    async def write(self, feed: Feed, head: Block, block: bytes = b"") -> None:
        """Begin to, once what was begun before is written."""
        await self.written(feed)
        self.writing = asyncio.ensure_future(asyncio.to_thread(_write, feed.pipe, head, block))

    async def written(self, feed: Feed) -> None:
        if self.writing is not None:
            try:
                await asyncio.shield(self.writing)
            except BrokenPipeError:
                await self.check_ended(feed)  # it says why

    async def check_ended(self, feed: Feed) -> None:
        """Raises unless the host has all of it."""
        done = await feed.finish()
        self.agent.check("take", done)
        if not self.agent.decode("take", done.stdout.strip(), TransferReport).complete:
            raise TransferError(
                Reason.TRANSFER_FAILED, f"{self.take.path} did not arrive whole",
                where=self.agent.name, why="the host took no more of it",
            )  # fmt: skip

    def report(self, found: _Read, sha256: str | None, began: float) -> TransferReport:
        if sha256 != found.sha256:
            raise TransferError(
                Reason.TRANSFER_CORRUPT, f"{self.take.path} cannot be sent", where=self.agent.name,
                why=f"its SHA-256 is {found.sha256}, not {sha256}", fix="Check the disk it lies on",
            )  # fmt: skip
        return TransferReport(
            path=self.take.path, bytes=self.take.bytes, sha256=found.sha256, complete=True,
            seconds=time.monotonic() - began,
        )  # fmt: skip


def _write(pipe: int, head: Block, block: bytes) -> None:
    write_all(pipe, head.to_json().encode() + b"\n")
    write_all(pipe, block)


def _digests(digest: Digest, block: bytes, whole: hashlib._Hash | None) -> bytes:
    if whole is not None:
        whole.update(block)
    return digest(block)


async def _blocks(parts: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The same bytes in whole blocks; the last one may be shorter."""
    waiting = bytearray()
    async with aclosing(parts):
        async for part in parts:
            if not waiting and len(part) == BLOCK_BYTES:
                yield part
                continue
            waiting += part
            while len(waiting) >= BLOCK_BYTES:
                yield bytes(waiting[:BLOCK_BYTES])
                del waiting[:BLOCK_BYTES]
    if waiting:
        yield bytes(waiting)
