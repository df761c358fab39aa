"""The agent's session on one host: calls answered in any order, and what it follows, on one stream.

A verb costs the host a fork this way, not the start of an interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from itertools import count

from dispatcher.core.model import Reason
from dispatcher.errors import HostError, TransportError
from dispatcher.transport.base import Completed, Stream
from worker_agent.protocol import CallHeader, FrameHeader, ProtocolError, WatchRequest

Frame = tuple[FrameHeader, bytes]
Explain = Callable[[Completed], HostError]

# Frames nobody has taken yet; then the host has to wait, as its log may be longer than our memory.
FRAMES_AHEAD = 16


class AgentSession:
    """Reads `stream`, a running `session` of the agent, until it ends; `explain` makes of the last
    words of one that ended by itself what its users are told."""

    def __init__(self, name: str, stream: Stream, explain: Explain) -> None:
        self._name = name
        self._stream = stream
        self._explain = explain
        self._numbers = count(1)
        self._replies: dict[int, asyncio.Future[Completed]] = {}
        self._frames: deque[Frame] = deque()
        self._arrived, self._taken = asyncio.Event(), asyncio.Event()
        self._followed = False
        self._failure: HostError | None = None
        self.heard_at = time.monotonic()
        self._reading = asyncio.create_task(self._read(), name=f"agent session with {name}")

    @property
    def ended(self) -> bool:
        return self._failure is not None

    async def call(self, verb: str, body: bytes) -> Completed:
        """What the verb said and its exit code. Raises TransportError when the link is lost, and
        what `explain` says when the agent ended the session."""
        number = next(self._numbers)
        reply: asyncio.Future[Completed] = asyncio.get_running_loop().create_future()
        self._replies[number] = reply
        try:
            await self._write(CallHeader(call=number, verb=verb, bytes=len(body)), body)
            return await reply
        finally:
            del self._replies[number]
            if reply.done() and not reply.cancelled():
                reply.exception()  # it may have failed while the request was still being written

    async def watch(self, request: WatchRequest) -> None:
        """From now on `frame` has what this attempt writes. Raises as `call`."""
        self._followed = True
        body = request.to_json().encode()
        await self._write(CallHeader(call=0, verb="watch", bytes=len(body)), body)

    async def frame(self) -> Frame:
        """The next one of any attempt, or a heartbeat. Raises as `call`."""
        self._followed = True
        while not self._frames:
            if self._failure is not None:
                raise self._failure
            self._arrived.clear()
            await self._arrived.wait()
        self._taken.set()
        return self._frames.popleft()

    async def close(self) -> None:
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading
        self._fail(self._lost("the session was closed"))
        await self._stream.close()

    async def _write(self, header: CallHeader, body: bytes) -> None:
        wanted = await self._stream.write(header.to_json().encode() + b"\n" + body)
        if not wanted:
            await asyncio.wait({self._reading})  # it has the reason
        if self._failure is not None:
            raise self._failure

    async def _read(self) -> None:
        try:
            self._fail(await self._receive())
        except HostError as error:
            self._fail(error)
        await self._stream.close()

    async def _receive(self) -> HostError:
        """Until the output ends; a frame that was cut is dropped whole, as whoever follows asks
        for it again."""
        while (line := await self._stream.read_line()).endswith(b"\n"):
            try:
                header = FrameHeader.from_json(line)
            except ProtocolError:
                break  # the words it ends with
            body = await self._stream.read_exactly(header.bytes)
            if len(body) != header.bytes:
                break
            self.heard_at = time.monotonic()
            if header.kind == "reply":
                self._answer(header, body)
            elif self._followed:
                await self._keep((header, body))
        done = await self._stream.finish()
        if done.returncode > 0:
            return self._explain(Completed(done.returncode, line + done.stdout, done.stderr))
        return self._lost("the session ended")

    def _answer(self, header: FrameHeader, body: bytes) -> None:
        reply = self._replies.get(header.call)
        if reply is not None and not reply.done():  # else nobody waits for it any more
            reply.set_result(Completed(header.code, body, b""))

    async def _keep(self, frame: Frame) -> None:
        self._frames.append(frame)
        self._arrived.set()
        while len(self._frames) >= FRAMES_AHEAD:
            self._taken.clear()
            await self._taken.wait()

    def _fail(self, failure: HostError) -> None:
        if self._failure is None:
            self._failure = failure
        self._arrived.set()
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(self._failure)

    def _lost(self, why: str) -> TransportError:
        return TransportError(Reason.HOST_UNREACHABLE, "link lost", where=self._name, why=why)
