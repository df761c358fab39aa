"""Receives events and logs of all attempts of a host over the agent's session."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from dispatcher.core.model import Reason
from dispatcher.errors import TransportError
from dispatcher.executors.agent_session import AgentSession
from worker_agent.protocol import FrameHeader, WatchRequest

# The agent sends a heartbeat every few seconds; this long without one, the link is taken for lost.
SILENCE_S = 45.0


class AgentFollower:
    """Satisfies dispatcher.executors.base.Follower."""

    def __init__(self, name: str, session: AgentSession, *, silence_s: float = SILENCE_S) -> None:
        self._name = name
        self._session = session
        self._silence_s = silence_s

    async def watch(self, request: WatchRequest) -> None:
        await self._session.watch(request)

    async def __aiter__(self) -> AsyncIterator[tuple[FrameHeader, bytes]]:
        while True:
            try:
                async with asyncio.timeout(self._silence_s):
                    frame = await self._session.frame()
            except TimeoutError:
                raise TransportError(
                    Reason.HOST_UNREACHABLE, "events stopped", where=self._name,
                    why=f"nothing heard for {self._silence_s:g} s",
                ) from None  # fmt: skip
            yield frame

    async def close(self) -> None:
        """Ends the session: the next one follows from the offsets it is given."""
        await self._session.close()


def parse_events(body: bytes) -> list[dict[str, Any]]:
    """Lines of events.jsonl. A line that is no JSON object is kept as text, never dropped."""
    events: list[dict[str, Any]] = []
    for line in body.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            events.append(value)
        else:
            events.append({"kind": "unreadable", "text": line.decode(errors="replace")})
    return events
