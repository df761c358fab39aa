"""Receives events and logs of all attempts of a host over one session of the agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from dispatcher.core.model import Reason
from dispatcher.errors import TransportError
from dispatcher.executors.agent import AgentLink
from dispatcher.transport.base import Completed, Stream
from worker_agent.protocol import FrameHeader, WatchRequest

# The agent sends a heartbeat every few seconds; this long without one, the link is taken for lost.
SILENCE_S = 45.0


class AgentFollower:
    """Satisfies dispatcher.executors.base.Follower."""

    def __init__(self, agent: AgentLink, stream: Stream, *, silence_s: float = SILENCE_S) -> None:
        self._agent = agent
        self._stream = stream
        self._silence_s = silence_s

    async def watch(self, request: WatchRequest) -> None:
        if not await self._stream.write(request.to_json().encode() + b"\n"):
            await self._ended()

    async def __aiter__(self) -> AsyncIterator[tuple[FrameHeader, bytes]]:
        while True:
            try:
                async with asyncio.timeout(self._silence_s):
                    line = await self._stream.read_line()
                    if not line.endswith(b"\n"):
                        await self._ended(line)
                    header = self._agent.decode("follow", line, FrameHeader)
                    body = await self._stream.read_exactly(header.bytes)
            except TimeoutError:
                raise self._lost(f"nothing heard for {self._silence_s:g} s") from None
            if len(body) != header.bytes:
                # A cut frame is dropped whole: its offset is asked for again after re-attaching.
                await self._ended()
            yield header, body

    async def _ended(self, said: bytes = b"") -> None:
        """Output ended: raises what the agent said, or that the session is gone."""
        done = await self._stream.finish()
        if done.returncode > 0:
            self._agent.check("follow", Completed(done.returncode, said + done.stdout, done.stderr))
        raise self._lost("the session ended")

    def _lost(self, why: str) -> TransportError:
        return TransportError(
            Reason.HOST_UNREACHABLE, "events stopped", where=self._agent.name, why=why
        )

    async def close(self) -> None:
        await self._stream.close()
