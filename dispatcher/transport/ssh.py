"""The link to a host over SSH (asyncssh): pinned host key, one connection for commands, a second
one for bulk copies, reconnect after a loss."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from socket import IPPROTO_TCP, TCP_INFO
from typing import Any

import asyncssh
from asyncssh.public_key import get_default_public_key_algs

from dispatcher.clock import Clock, SystemClock
from dispatcher.core.model import Reason
from dispatcher.errors import TransportError
from dispatcher.transport.base import Completed
from dispatcher.transport.connect_gate import gate
from dispatcher.transport.fewer_packets import leave_out_ignored
from dispatcher.transport.openssh import SshFeed
from dispatcher.transport.pinned import PinnedHost, pinned_fingerprint
from dispatcher.transport.target import CIPHERS, SshTarget

CONNECT_TIMEOUT_S = 15.0
# An idle connection costs one exchange an interval; a link that stalls for one is not dead yet, and
# is given up after two.
KEEPALIVE_S = 45.0
KEEPALIVE_COUNT = 1
CONNECT_TRIES = 3  # within CONNECT_TIMEOUT_S: a full MaxStartups queue drops connections at random
SESSION_TRIES = 6  # about two seconds
FIRST_DELAY_S = 0.25
# OpenSSH refuses the eleventh session of a connection by default (MaxSessions 10).
COMMAND_SESSIONS = 8
BULK_SESSIONS = 4
_TCP_INFO_RTT = slice(68, 72)  # of struct tcp_info: tcpi_rtt, microseconds


class SshTransport:
    """Transport over SSH; satisfies dispatcher.transport.base.Transport."""

    def __init__(self, target: SshTarget, *, clock: Clock | None = None) -> None:
        steady = clock or SystemClock()
        self._command = _Link(target, COMMAND_SESSIONS, steady)
        self._bulk = _Link(target, BULK_SESSIONS, steady)

    async def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        timeout_s: float = 60.0,
        bulk: bool = False,
    ) -> Completed:
        """See Transport.run."""
        try:
            async with asyncio.timeout(timeout_s):
                stream = await self.stream(argv, bulk=bulk)
                try:
                    await stream.write(input)
                    await stream.write_eof()
                    return await stream.finish()
                finally:
                    await stream.close()
        except TimeoutError:
            raise self._command.unreachable(
                f"no answer to {shlex.join(argv)[:60]} within {timeout_s:g} s"
            ) from None

    async def stream(self, argv: Sequence[str], *, bulk: bool = False) -> SshStream:
        """See Transport.stream."""
        return await (self._bulk if bulk else self._command).open(argv)

    async def feed(self, argv: Sequence[str], request: bytes) -> SshFeed:
        """See BulkTransport.feed."""
        return await self._command.feed(argv, request)

    async def host_key(self) -> str:
        """See BulkTransport.host_key."""
        return await self._command.host_key()

    async def round_trip_s(self) -> float | None:
        """See BulkTransport.round_trip_s."""
        return await self._command.round_trip_s()

    async def close(self) -> None:
        await self._command.close()
        await self._bulk.close()


@dataclass(slots=True)
class _Link:
    """One connection to the target, made when needed; `lock` lets only one connect run."""

    target: SshTarget
    max_sessions: int
    clock: Clock
    connection: asyncssh.SSHClientConnection | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    failure: TransportError | None = None
    failed_at: float = float("-inf")
    sessions: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.sessions = asyncio.Semaphore(self.max_sessions)

    def unreachable(self, why: str) -> TransportError:
        return TransportError(
            Reason.HOST_UNREACHABLE,
            "host cannot be reached",
            where=self.target.name,
            why=f"{self._address()}: {why}",
            fix="Check that the host is up, and that its SSH server listens there",
        )

    def _address(self) -> str:
        return f"{self.target.address}:{self.target.port or 22}"

    async def open(self, argv: Sequence[str]) -> SshStream:
        await self.sessions.acquire()
        try:
            return SshStream(await self._session(shlex.join(argv)), self)
        except BaseException:
            self.sessions.release()
            raise

    async def _session(self, command: str) -> asyncssh.SSHClientProcess[bytes]:
        """A busy server still counts sessions whose end was told here already: asked again."""
        delay = FIRST_DELAY_S / 4
        for attempt in range(SESSION_TRIES):
            if attempt:
                await asyncio.sleep(delay * random.uniform(0.5, 1.5))
                delay *= 2
            connection = await self._connected()
            try:
                return await connection.create_process(
                    command, encoding=None, stdin=asyncssh.PIPE, request_pty=False
                )
            except asyncssh.ChannelOpenError as error:
                why = error.reason
            except (asyncssh.Error, OSError) as error:
                raise self.unreachable(_text(error)) from None
        raise self.unreachable(f"the SSH server opens no session: {why}")

    async def feed(self, argv: Sequence[str], request: bytes) -> SshFeed:
        """It trusts the very key that this connection was made with, however that is pinned."""
        key = None if self.target.host_key is None else await self.host_key()
        async with gate(self.target.proxy_jump or self._address()):
            feed = await SshFeed.start(self.target, key, argv, self.unreachable)
            try:
                await feed.begin(request)
            except BaseException:
                await feed.close()
                raise
        return feed

    async def host_key(self) -> str:
        shown = (await self._connected()).get_server_host_key()
        if shown is None:
            raise self.unreachable("the connection has no host key any more")
        return shown.export_public_key("openssh").decode().strip()

    async def round_trip_s(self) -> float | None:
        """As the kernel measures it; None where the connection goes by way of another host."""
        socket = (await self._connected()).get_extra_info("socket")
        if self.target.proxy_jump is not None or socket is None:
            return None
        facts = socket.getsockopt(IPPROTO_TCP, TCP_INFO, _TCP_INFO_RTT.stop)
        return int.from_bytes(facts[_TCP_INFO_RTT], sys.byteorder) / 1e6

    async def close(self) -> None:
        async with self.lock:
            connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    await connection.wait_closed()
            connection.abort()

    async def _connected(self) -> asyncssh.SSHClientConnection:
        asked = self.clock.monotonic()
        async with self.lock:
            if self.connection is not None and not self.connection.is_closed():
                return self.connection
            if self.failure is not None and self.failed_at >= asked:
                # It failed while this caller waited for it: one failure, told to all.
                raise self.failure
            try:
                self.connection = await self._connect()
            except TransportError as error:
                error.sent = False
                self.failure, self.failed_at = error, self.clock.monotonic()
                raise
            return self.connection

    async def _connect(self) -> asyncssh.SSHClientConnection:
        why = ""
        delay = FIRST_DELAY_S
        try:
            # Waiting for the gate is no fault of the host: its time is not counted.
            async with (
                gate(self.target.proxy_jump or self._address()),
                asyncio.timeout(CONNECT_TIMEOUT_S),
            ):
                for attempt in range(CONNECT_TRIES):
                    if attempt:
                        await asyncio.sleep(delay * random.uniform(0.5, 1.5))
                        delay *= 2
                    try:
                        return await self._connect_once()
                    except (OSError, asyncssh.DisconnectError) as error:
                        why = _text(error)
        except TimeoutError:
            why = why or f"no answer within {CONNECT_TIMEOUT_S:g} s"
        raise self.unreachable(why)

    async def _connect_once(self) -> asyncssh.SSHClientConnection:
        """Raises TransportError for what no second try can mend."""
        target = self.target
        pinned = self._pinned()
        owner = PinnedHost(pinned)
        try:
            connection, _ = await asyncssh.create_connection(
                lambda: owner, target.address, **self._options()
            )
        except asyncssh.HostKeyNotVerifiable as error:
            raise self._key_error(pinned, owner.seen or _text(error)) from None
        except asyncssh.PermissionDenied as error:
            user = target.user or "the default user"
            key = target.identity_file or "the SSH agent and the default keys"
            raise self._auth_error(f"{user} with {key}: {_text(error)}") from None
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            raise self._auth_error(f"{target.identity_file}: {error}") from None
        leave_out_ignored(connection)
        return connection

    def _options(self) -> dict[str, Any]:
        target = self.target
        options: dict[str, Any] = {
            "keepalive_interval": KEEPALIVE_S,
            "keepalive_count_max": KEEPALIVE_COUNT,
            "encryption_algs": list(CIPHERS),
            "compression_algs": ["none"],
            "x11_forwarding": False,
        }
        if target.port is not None:
            options["port"] = target.port
        if target.user is not None:
            options["username"] = target.user
        if target.identity_file is not None:
            if not target.identity_file.is_file():
                raise self._auth_error(f"identity file {target.identity_file} does not exist")
            options["client_keys"] = [str(target.identity_file)]
        if target.proxy_jump is not None:
            options["tunnel"] = target.proxy_jump
        if target.host_key is not None:
            # Nothing is trusted but what PinnedHost lets through.
            options["known_hosts"] = ([], [], [])
            if not target.host_key.startswith("SHA256:"):
                key = asyncssh.import_public_key(target.host_key)
                # The pinned type is asked for first; any other still shows itself as a mismatch.
                first = list(key.sig_algorithms)
                rest = [a for a in get_default_public_key_algs() if a not in first]
                options["server_host_key_algs"] = [a.decode() for a in (*first, *rest)]
        return options

    def _pinned(self) -> str | None:
        if self.target.host_key is None:
            return None
        try:
            return pinned_fingerprint(self.target.host_key)
        except ValueError as error:
            raise TransportError(
                Reason.HOST_KEY_MISMATCH,
                "the pinned host key is not a key",
                where=self.target.name,
                why=str(error),
                fix="Correct `host_key:` of this host in the inventory",
            ) from None

    def _key_error(self, pinned: str | None, seen: str) -> TransportError:
        if pinned is None:
            why = f"{self._address()} is not in ~/.ssh/known_hosts and no host_key is pinned"
            fix = "Pin its key: `host_key:` in the inventory, or `cosma worker add`"
        else:
            why = f"{self._address()} shows {seen}, the inventory has pinned {pinned}"
            fix = "If the host was reinstalled, replace its host_key; if not, do not trust it"
        return TransportError(
            Reason.HOST_KEY_MISMATCH,
            "host key does not match",
            where=self.target.name,
            why=why,
            fix=fix,
        )

    def _auth_error(self, why: str) -> TransportError:
        return TransportError(
            Reason.HOST_AUTH_FAILED,
            "login refused",
            where=self.target.name,
            why=why,
            fix="Check user and identity_file in the inventory, and authorized_keys on the host",
        )


class SshStream:
    """A running command on a link; satisfies dispatcher.transport.base.Stream."""

    def __init__(self, process: asyncssh.SSHClientProcess[bytes], link: _Link) -> None:
        self._process = process
        self._link = link
        self._open = True

    async def write(self, data: bytes) -> bool:
        if not data:
            return True
        try:
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        except BrokenPipeError:
            return False
        except (asyncssh.Error, OSError) as error:
            raise self._lost(error) from None
        return True

    async def write_eof(self) -> None:
        # The command may have ended already, with its reason on its output.
        with contextlib.suppress(BrokenPipeError, OSError):
            self._process.stdin.write_eof()

    async def read_line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            # asyncssh returns an unfinished line when its window is full, and at a loss.
            part = await self._guard(self._process.stdout.readline())
            if not part:
                break
            line += part
        return line

    async def read_exactly(self, count: int) -> bytes:
        if count == 0:
            return b""
        try:
            return await self._guard(self._process.stdout.readexactly(count))
        except asyncio.IncompleteReadError as error:
            await self._guard(self._process.stdout.read(1))  # raises when the link was lost
            return error.partial

    async def read(self, limit: int) -> bytes:
        return await self._guard(self._process.stdout.read(limit))

    async def finish(self) -> Completed:
        try:
            stdout, stderr = await self._process.communicate()
            await self._process.wait_closed()
        except (asyncssh.Error, OSError) as error:
            raise self._lost(error) from None
        code = self._process.returncode
        if code is None:
            raise self._lost(ConnectionError("the session ended without an exit status"))
        return Completed(code, stdout or b"", stderr or b"")

    async def close(self) -> None:
        if self._open:
            self._open = False
            self._process.close()
            self._link.sessions.release()

    async def _guard(self, reading: Any) -> bytes:
        try:
            data: bytes = await reading
        except (asyncssh.Error, OSError) as error:
            raise self._lost(error) from None
        return data

    def _lost(self, error: Exception) -> TransportError:
        return self._link.unreachable(f"the link was lost: {_text(error)}")


def _text(error: BaseException) -> str:
    text = getattr(error, "reason", "") or getattr(error, "strerror", "") or str(error)
    return " ".join(str(text).split()) or type(error).__name__
