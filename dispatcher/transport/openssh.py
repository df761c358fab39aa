"""Bulk copies to a host by the OpenSSH client, as a child that reads a pipe of this process.

It moves a gigabyte for two thirds of the CPU of scp and half of what the same costs in this process
(docs/decisions/0004). It trusts the same host key and takes the same identity as the connection for
commands; nothing is forwarded, no connection is shared.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from collections.abc import Callable, Sequence
from typing import cast

from dispatcher.core.model import Reason
from dispatcher.errors import TransportError
from dispatcher.transport.base import Completed
from dispatcher.transport.target import CIPHERS, SshTarget

_ALIVE_S = 15  # the server is asked after so much silence, and given up after three of them
_SAID_BYTES = 1 << 16
_LINE_BYTES = 16 << 20  # the digests of a terabyte in blocks
_OPTIONS = (
    "BatchMode=yes",
    "ConnectTimeout=15",
    "StrictHostKeyChecking=yes",
    "ControlPath=none",
    "ForwardAgent=no",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "Compression=no",
    "LogLevel=ERROR",
    f"ServerAliveInterval={_ALIVE_S}",
    "ServerAliveCountMax=3",
    # What asyncssh agrees on, too; OpenSSH's own first choice costs seven times the CPU.
    "KexAlgorithms=^curve25519-sha256",
)
_ALIAS = "cosma-host"  # the name under which the one trusted key is filed

Lost = Callable[[str], TransportError]


def command(target: SshTarget, known_hosts: str | None) -> list[str]:
    """The client's argv up to the remote command. `known_hosts` is a file with the key of
    `_ALIAS`; None: the user's own files decide."""
    options = [*_OPTIONS, f"Ciphers={','.join(CIPHERS)}"]
    if known_hosts is not None:
        options += [
            f"HostKeyAlias={_ALIAS}",
            f"UserKnownHostsFile={known_hosts}",
            "GlobalKnownHostsFile=/dev/null",
            "UpdateHostKeys=no",
            "CheckHostIP=no",
        ]
    argv = ["ssh", "-aTx", *(f"-o{option}" for option in options)]
    if target.port is not None:
        argv += ["-p", str(target.port)]
    if target.user is not None:
        argv += ["-l", target.user]
    if target.identity_file is not None:
        argv += ["-i", str(target.identity_file), "-oIdentitiesOnly=yes"]
    if target.proxy_jump is not None:
        argv += ["-J", target.proxy_jump]
    return [*argv, "--", target.address]


class SshFeed:
    """A running command on a host; satisfies dispatcher.transport.base.Feed."""

    def __init__(
        self, process: asyncio.subprocess.Process, pipe: int, trusted: int | None, lost: Lost
    ) -> None:
        self._process = process
        self._handle: int | None = None
        with contextlib.suppress(ProcessLookupError):  # it has ended
            self._handle = os.pidfd_open(process.pid)
        self._trusted = trusted
        self._lost = lost
        # Both are pipes: see `start`.
        self._stdout = cast(asyncio.StreamReader, process.stdout)
        self._stderr = asyncio.create_task(_all_of(cast(asyncio.StreamReader, process.stderr)))
        self.pipe = pipe
        self.reply = b""

    @classmethod
    async def start(
        cls, target: SshTarget, key: str | None, argv: Sequence[str], lost: Lost
    ) -> SshFeed:
        """Run `argv` on the host whose one trusted key is `key`. Raises TransportError."""
        reading, writing = os.pipe()
        trusted = None if key is None else _in_memory(f"{_ALIAS} {key}\n")
        # The child closes what it inherits: it reads the list by our number, while we hold it.
        known = None if trusted is None else f"/proc/{os.getpid()}/fd/{trusted}"
        try:
            process = await asyncio.create_subprocess_exec(
                *command(target, known),
                shlex.join(argv),
                stdin=reading,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=_LINE_BYTES,
            )
        except FileNotFoundError:
            os.close(writing)
            raise lost("ssh is not installed on this machine") from None
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        return cls(process, writing, trusted, lost)

    async def begin(self, request: bytes) -> None:
        """Have it answer: then it is there, and has logged in. Raises TransportError."""
        with contextlib.suppress(BrokenPipeError):  # it has ended, with its reason on its output
            os.write(self.pipe, request)
        self.reply = await self._stdout.readline()
        self._forget()

    async def read_line(self) -> bytes:
        """See Feed.read_line."""
        return await self._stdout.readline()

    async def finish(self) -> Completed:
        """Close the pipe and wait for the end. Raises TransportError when the link was lost."""
        self._close_pipe()
        stdout, stderr = await asyncio.gather(_all_of(self._stdout), self._stderr)
        code = await self._process.wait()
        if code in (255, -13):
            raise self._why(stderr)
        return Completed(code, stdout, stderr)

    def _why(self, stderr: bytes) -> TransportError:
        lines = stderr.decode(errors="replace").split("\n")
        said = [" ".join(line.split()) for line in lines if line.strip()]
        error = self._lost(said[-1] if said else "the link was lost")
        if any("Host key verification failed" in line for line in said):
            error.reason = Reason.HOST_KEY_MISMATCH
        elif any("Permission denied (" in line for line in said):
            error.reason = Reason.HOST_AUTH_FAILED
        return error

    def kill(self) -> None:
        """See Feed.kill."""
        # Not Process.kill: that may reap the child under the watcher, which then cannot say how it
        # ended.
        if self._process.returncode is None and self._handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    async def close(self) -> None:
        """See Feed.close."""
        self.kill()
        self._close_pipe()
        await self._process.wait()
        await asyncio.wait({self._stderr})
        self._forget()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _close_pipe(self) -> None:
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1

    def _forget(self) -> None:
        if self._trusted is not None:
            os.close(self._trusted)
            self._trusted = None


async def _all_of(stream: asyncio.StreamReader) -> bytes:
    """To its end; of very much only the beginning."""
    said = b""
    while part := await stream.read(_SAID_BYTES):
        said = (said + part)[:_SAID_BYTES]
    return said


def _in_memory(text: str) -> int:
    """A descriptor of a file that has no name."""
    descriptor = os.memfd_create("known_hosts", os.MFD_CLOEXEC)
    os.write(descriptor, text.encode())
    return descriptor
