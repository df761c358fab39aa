"""An independent implementation of Transport on paramiko: the peer of the contract suite."""

from __future__ import annotations

import asyncio
import base64
import shlex
from collections.abc import Sequence

import paramiko

from dispatcher.core.model import Reason
from dispatcher.errors import TransportError
from dispatcher.transport.base import Completed
from dispatcher.transport.target import SshTarget


def _lost(name: str, error: Exception) -> TransportError:
    return TransportError(Reason.HOST_UNREACHABLE, "lost", where=name, why=str(error))


class ParamikoTransport:
    def __init__(self, target: SshTarget) -> None:
        self._target = target
        self._client: paramiko.SSHClient | None = None

    async def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        timeout_s: float = 60.0,
        bulk: bool = False,
    ) -> Completed:
        stream = await self.stream(argv)
        try:
            async with asyncio.timeout(timeout_s):
                await stream.write(input)
                await stream.write_eof()
                return await stream.finish()
        except TimeoutError as error:
            raise _lost(self._target.name, error) from None
        finally:
            await stream.close()

    async def stream(self, argv: Sequence[str], *, bulk: bool = False) -> ParamikoStream:
        return await asyncio.to_thread(self._open, shlex.join(argv))

    def _open(self, command: str) -> ParamikoStream:
        if self._client is None:
            self._client = self._connect()
        transport = self._client.get_transport()
        if transport is None:
            raise _lost(self._target.name, EOFError("closed"))
        try:
            channel = transport.open_session()
            channel.exec_command(command)
        except (paramiko.SSHException, EOFError, OSError) as error:
            self._client = None
            raise _lost(self._target.name, error) from None
        return ParamikoStream(self._target.name, channel, transport)

    def _connect(self) -> paramiko.SSHClient:
        target = self._target
        client = paramiko.SSHClient()
        if target.host_key is None:
            raise AssertionError("the suite pins every key")
        kind, text = target.host_key.split()[:2]
        key = paramiko.PKey.from_type_string(kind, base64.b64decode(text))
        client.get_host_keys().add(f"[{target.address}]:{target.port}", kind, key)
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        try:
            client.connect(
                target.address,
                port=target.port or 22,
                username=target.user,
                key_filename=str(target.identity_file),
                allow_agent=False,
                look_for_keys=False,
            )
        except paramiko.BadHostKeyException as error:
            raise TransportError(Reason.HOST_KEY_MISMATCH, str(error)) from None
        except paramiko.AuthenticationException as error:
            raise TransportError(Reason.HOST_AUTH_FAILED, str(error)) from None
        except (paramiko.SSHException, OSError) as error:
            raise _lost(target.name, error) from None
        return client

    async def close(self) -> None:
        if self._client is not None:
            await asyncio.to_thread(self._client.close)


class ParamikoStream:
    def __init__(self, name: str, channel: paramiko.Channel, transport: paramiko.Transport) -> None:
        self._name = name
        self._channel = channel
        self._transport = transport
        self._buffer = b""

    async def write(self, data: bytes) -> bool:
        try:
            await asyncio.to_thread(self._channel.sendall, data)
        except OSError as error:
            if self._transport.is_active():
                return False
            raise _lost(self._name, error) from None
        return True

    async def write_eof(self) -> None:
        await asyncio.to_thread(self._channel.shutdown_write)

    async def _more(self) -> bool:
        block = await asyncio.to_thread(self._channel.recv, 1 << 16)
        if not block and not self._transport.is_active():
            raise _lost(self._name, EOFError("the link was lost"))
        self._buffer += block
        return bool(block)

    def _take(self, count: int) -> bytes:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    async def read_line(self) -> bytes:
        while b"\n" not in self._buffer and await self._more():
            pass
        end = self._buffer.find(b"\n")
        return self._take(end + 1 if end >= 0 else len(self._buffer))

    async def read_exactly(self, count: int) -> bytes:
        while len(self._buffer) < count and await self._more():
            pass
        return self._take(count)

    async def read(self, limit: int) -> bytes:
        if not self._buffer:
            await self._more()
        return self._take(limit)

    async def finish(self) -> Completed:
        while await self._more():
            pass
        errors = await asyncio.to_thread(self._channel.makefile_stderr("rb").read)
        code = await asyncio.to_thread(self._channel.recv_exit_status)
        return Completed(code, self._take(len(self._buffer)), errors)

    async def close(self) -> None:
        await asyncio.to_thread(self._channel.close)
