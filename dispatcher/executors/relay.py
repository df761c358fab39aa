"""Files of one host's run directory to another's, as one stream: through here, or straight."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from dispatcher.errors import HostError
from dispatcher.executors.agent import AgentLink
from dispatcher.executors.base import Pack
from dispatcher.transport.base import Completed, Stream
from worker_agent.protocol import PackRequest, ProtocolError, UnpackReport, UnpackRequest

BLOCK = 1 << 20


class SourceLost(Exception):
    """The host that has the files did not give them; `error` says why."""

    def __init__(self, error: HostError) -> None:
        self.error = error
        super().__init__(error.line)


async def packed(agent: AgentLink, request: PackRequest) -> AsyncIterator[bytes]:
    """The stream of `pack`. Raises HostError."""
    stream = await agent.open("pack")
    try:
        await stream.write(request.to_json().encode() + b"\n")
        await stream.write_eof()
        while block := await stream.read(BLOCK):
            yield block
        agent.check("pack", await stream.finish())
    finally:
        await stream.close()


async def unpack(
    agent: AgentLink, request: UnpackRequest, pack: Pack | None, came: Callable[[int], None]
) -> UnpackReport:
    """Have the files on the agent's host. `pack` gives what is missing there, unless the host
    pulls it from `request.source`; with neither the report only says what is there. `came` is told
    the bytes, now and then.

    Raises SourceLost, HostError.
    """
    stream = await agent.open("unpack")
    try:
        await stream.write(request.to_json().encode() + b"\n")
        wanted = await agent.first_reply("unpack", stream, PackRequest)
        reports = asyncio.ensure_future(_reports(agent, stream, came))
        try:
            if pack is not None and wanted.items and request.source is None:
                await _relay(pack(wanted), stream)
            await stream.write_eof()
            return await reports
        finally:
            reports.cancel()
            await asyncio.wait({reports})
    finally:
        await stream.close()


async def _reports(agent: AgentLink, stream: Stream, came: Callable[[int], None]) -> UnpackReport:
    """The last one of those that come."""
    line = b""
    while more := await stream.read_line():
        line = more
        with contextlib.suppress(ProtocolError):  # no report: it says why there is none
            came(UnpackReport.from_json(line).bytes)
    done = await stream.finish()
    agent.check("unpack", Completed(done.returncode, line, done.stderr))
    return agent.decode("unpack", line, UnpackReport)


async def _relay(blocks: AsyncIterator[bytes], stream: Stream) -> None:
    while True:
        try:
            block = await anext(blocks, b"")
        except HostError as error:
            raise SourceLost(error) from None
        # A reader that stopped says why on its output.
        if not block or not await stream.write(block):
            return
