"""What the dispatcher asks of a link to a host. Commands are argv lists, bytes in and out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Completed:
    returncode: int  # negative: ended by that signal, as subprocess has it
    stdout: bytes
    stderr: bytes


class Stream(Protocol):
    """A command that runs while bytes go both ways.

    Every method raises TransportError(HOST_UNREACHABLE) when the link is lost; a command that
    merely ends shows as end of file.
    """

    async def write(self, data: bytes) -> bool:
        """Waits while the far side is slow. False: the command reads no more."""
        ...

    async def write_eof(self) -> None: ...

    async def read_line(self) -> bytes:
        """With its line end; b"" at the end of output."""
        ...

    async def read_exactly(self, count: int) -> bytes:
        """Fewer bytes only when output ended."""
        ...

    async def read(self, limit: int) -> bytes:
        """One to `limit` bytes; b"" at the end of output."""
        ...

    async def finish(self) -> Completed:
        """Wait for the command to end. `stdout` is what was not read before."""
        ...

    async def close(self) -> None:
        """Stop listening; idempotent. The command sees its input and output closed."""
        ...


class Feed(Protocol):
    """A command that reads what is written into a pipe of this process, by the gigabyte."""

    pipe: int  # its descriptor; writing blocks, and raises BrokenPipeError once the command ended
    reply: bytes  # its first line; b"" when it ended without one

    async def read_line(self) -> bytes:
        """The next one of its output; without a line end when that has ended."""
        ...

    async def finish(self) -> Completed:
        """Close the pipe and wait for the end. Raises TransportError when the link was lost."""
        ...

    def kill(self) -> None:
        """End it, so that writing to the pipe fails; idempotent."""
        ...

    async def close(self) -> None:
        """End it, and close the pipe that nobody writes to any more; idempotent."""
        ...


class Transport(Protocol):
    """One host. Connects when first used, and again after a loss."""

    async def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        timeout_s: float = 60.0,
        bulk: bool = False,
    ) -> Completed:
        """`bulk` for what takes long, as in `stream`.

        Raises TransportError, HOST_UNREACHABLE also when `timeout_s` runs out.
        """
        ...

    async def stream(self, argv: Sequence[str], *, bulk: bool = False) -> Stream:
        """`bulk` goes over a connection of its own, so that it never delays a command."""
        ...

    async def close(self) -> None: ...


class BulkTransport(Transport, Protocol):
    async def feed(self, argv: Sequence[str], request: bytes) -> Feed:
        """Run a command over a connection of its own, for a large file, until it has answered
        `request` with a line. Raises TransportError."""
        ...

    async def host_key(self) -> str:
        """The public key that the host has shown, and that was accepted. Raises TransportError."""
        ...

    async def round_trip_s(self) -> float | None:
        """To the host and back; None where that cannot be told. Raises TransportError."""
        ...
