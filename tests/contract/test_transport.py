"""One suite for every Transport, on a real sshd: asyncssh as used, paramiko as the witness."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from dispatcher.core.model import Reason
from dispatcher.embedded import free_port
from dispatcher.errors import TransportError
from dispatcher.transport.base import Transport
from dispatcher.transport.ssh import SshTransport
from dispatcher.transport.target import SshTarget
from tests.contract.paramiko_transport import ParamikoTransport
from tests.sshd import Farm, Sshd, farm, make_key

__all__ = ["farm"]

STRANGE = [
    "plain",
    "with space",
    "quote'd",
    'double"quoted',
    "new\nline",
    "-leading-dash",
    "$HOME `id` $(id) \\ ; & | < > * ? [a] {b} ! # ~",
    "übergröße 海底 🐟",
    "",
    "tab\tand\rreturn",
]

KINDS = {"asyncssh": SshTransport, "paramiko": ParamikoTransport}


def make(kind: str, target: SshTarget) -> Transport:
    transport: Transport = KINDS[kind](target)
    return transport


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(farm: Farm) -> Sshd:
    return farm.start()


@pytest_asyncio.fixture
async def transport(kind: str, server: Sshd) -> AsyncIterator[Transport]:
    made = make(kind, server.target())
    yield made
    await made.close()


async def test_arguments_arrive_as_they_are(transport: Transport) -> None:
    script = "import sys; sys.stdout.buffer.write(b'\\0'.join(a.encode() for a in sys.argv[1:]))"
    done = await transport.run(["python3", "-c", script, *STRANGE])
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().split("\0") == STRANGE


async def test_bytes_cross_unchanged_both_ways(transport: Transport) -> None:
    content = random.Random(7).randbytes(3 << 20) + bytes(range(256))
    done = await transport.run(["cat"], input=content)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(content).digest()


async def test_exit_codes_and_errors_are_kept_apart(transport: Transport) -> None:
    done = await transport.run(["sh", "-c", "echo out; echo err >&2; exit 37"])
    assert (done.returncode, done.stdout, done.stderr) == (37, b"out\n", b"err\n")


async def test_a_missing_program_is_an_exit_code_not_a_lost_link(transport: Transport) -> None:
    assert (await transport.run(["/no/such/program"])).returncode == 127


async def test_a_stream_talks_line_by_line(transport: Transport) -> None:
    stream = await transport.stream(["cat"])
    for line in (b"one\n", b"two words\n", b"x" * 100_000 + b"\n"):
        assert await stream.write(line)
        assert await stream.read_line() == line
    await stream.write(b"abcdef")
    await stream.write_eof()
    assert await stream.read_exactly(4) == b"abcd"
    assert await stream.read_exactly(10) == b"ef"
    assert await stream.read_line() == b""
    assert (await stream.finish()).returncode == 0
    await stream.close()


async def test_what_was_not_read_comes_with_the_end(transport: Transport) -> None:
    stream = await transport.stream(["sh", "-c", "echo first; echo second; exit 3"])
    assert await stream.read_line() == b"first\n"
    done = await stream.finish()
    assert (done.returncode, done.stdout) == (3, b"second\n")
    await stream.close()


async def test_a_command_that_stops_reading_does_not_block_the_writer(
    transport: Transport,
) -> None:
    stream = await transport.stream(["sh", "-c", "head -c 3 >/dev/null; echo enough; exit 4"])
    block = bytes(1 << 20)
    wanted = True
    for _ in range(64):
        wanted = wanted and await stream.write(block)
    assert not wanted
    done = await stream.finish()
    assert (done.returncode, done.stdout) == (4, b"enough\n")
    await stream.close()


async def test_a_lost_link_is_not_an_end_of_output(transport: Transport, server: Sshd) -> None:
    stream = await transport.stream(["sh", "-c", "echo half; exec sleep 60"])
    assert await stream.read_line() == b"half\n"
    assert server.kill_sessions() > 0
    with pytest.raises(TransportError) as caught:
        await stream.read_line()
    assert caught.value.reason is Reason.HOST_UNREACHABLE
    await stream.close()


async def test_refusals_have_the_same_reasons(kind: str, server: Sshd, farm: Farm) -> None:
    stranger = make_key(farm.directory / "stranger")
    other = stranger.with_suffix(".pub").read_text()
    expected = {
        Reason.HOST_KEY_MISMATCH: server.target(host_key=other),
        Reason.HOST_AUTH_FAILED: server.target(identity_file=stranger),
        Reason.HOST_UNREACHABLE: server.target(port=free_port()),
    }
    for reason, target in expected.items():
        transport = make(kind, target)
        with pytest.raises(TransportError) as caught:
            await transport.run(["true"])
        assert caught.value.reason is reason
        await transport.close()
