"""The SSH transport against real sshd processes: what goes well and what must not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from asyncssh.constants import MSG_CHANNEL_DATA, MSG_IGNORE

from dispatcher.core.model import Reason
from dispatcher.embedded import free_port
from dispatcher.errors import ExitCode, TransportError
from dispatcher.transport.ssh import SshTransport, pinned_fingerprint
from dispatcher.transport.target import SshTarget
from tests.sshd import Farm, farm, make_key

__all__ = ["farm"]


@asynccontextmanager
async def connected(target: SshTarget) -> AsyncIterator[SshTransport]:
    transport = SshTransport(target)
    try:
        yield transport
    finally:
        await transport.close()


async def refused(target: SshTarget) -> TransportError:
    async with connected(target) as transport:
        with pytest.raises(TransportError) as caught:
            await transport.run(["true"])
    assert caught.value.exit_code is ExitCode.NO_HOST
    assert "\n" not in caught.value.line
    assert target.name in caught.value.line
    return caught.value


async def test_the_pinned_key_may_be_a_fingerprint(farm: Farm) -> None:
    server = farm.start()
    pinned = pinned_fingerprint(server.host_key)
    async with connected(server.target(host_key=pinned)) as transport:
        assert (await transport.run(["echo", "hello"])).stdout == b"hello\n"


@pytest.mark.parametrize("as_fingerprint", [False, True])
async def test_a_wrong_host_key_is_never_talked_to(
    farm: Farm, tmp_path: Path, as_fingerprint: bool
) -> None:
    server = farm.start()
    other = make_key(tmp_path / "other").with_suffix(".pub").read_text()
    pinned = pinned_fingerprint(other)
    error = await refused(server.target(host_key=pinned if as_fingerprint else other))
    assert error.reason is Reason.HOST_KEY_MISMATCH
    assert pinned in error.line
    assert pinned_fingerprint(server.host_key) in error.line


async def test_a_host_key_of_another_type_is_a_mismatch(farm: Farm, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other", "ecdsa").with_suffix(".pub").read_text()
    error = await refused(farm.start().target(host_key=other))
    assert error.reason is Reason.HOST_KEY_MISMATCH


async def test_a_pinned_key_that_is_no_key_says_so(farm: Farm) -> None:
    error = await refused(farm.start().target(host_key="ssh-ed25519 AAAA"))
    assert error.reason is Reason.HOST_KEY_MISMATCH
    assert "host_key" in error.line


async def test_without_a_pin_only_known_hosts_counts(
    farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = farm.start()
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    error = await refused(server.target(host_key=None))
    assert error.reason is Reason.HOST_KEY_MISMATCH
    assert "known_hosts" in error.line
    known = home / ".ssh" / "known_hosts"
    known.write_text(f"[127.0.0.1]:{server.port} {server.host_key}\n")
    async with connected(server.target(host_key=None)) as transport:
        assert (await transport.run(["true"])).returncode == 0


async def test_a_closed_port_is_unreachable() -> None:
    target = SshTarget(name="nowhere", address="127.0.0.1", port=free_port(), host_key=None)
    error = await refused(target)
    assert error.reason is Reason.HOST_UNREACHABLE
    assert str(target.port) in error.line


async def test_a_wrong_user_key_is_an_authentication_failure(farm: Farm, tmp_path: Path) -> None:
    server = farm.start()
    error = await refused(server.target(identity_file=make_key(tmp_path / "stranger")))
    assert error.reason is Reason.HOST_AUTH_FAILED
    missing = await refused(server.target(identity_file=tmp_path / "gone"))
    assert missing.reason is Reason.HOST_AUTH_FAILED
    assert "does not exist" in missing.line
    broken = tmp_path / "broken"
    broken.write_text("not a key")
    assert (await refused(server.target(identity_file=broken))).reason is Reason.HOST_AUTH_FAILED


async def test_many_commands_share_one_connection(farm: Farm) -> None:
    server = farm.start()
    async with connected(server.target()) as transport:
        # More than MaxSessions (10), and all at once before anything is connected.
        done = await asyncio.gather(*(transport.run(["echo", str(i)]) for i in range(24)))
        assert [d.stdout for d in done] == [b"%d\n" % i for i in range(24)]
        assert len(server.sessions()) == 1
        stream = await transport.stream(["cat"], bulk=True)
        assert len(server.sessions()) == 2
        await stream.close()


async def test_nothing_is_sent_only_to_be_ignored(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    send = asyncssh.SSHClientConnection.send_packet

    def counted(
        connection: asyncssh.SSHClientConnection, kind: int, *parts: bytes, **by: Any
    ) -> None:
        sent.append(kind)
        send(connection, kind, *parts, **by)

    monkeypatch.setattr(asyncssh.SSHClientConnection, "send_packet", counted)
    async with connected(farm.start().target()) as transport:
        await transport.run(["true"])  # by now it is connected
        sent.clear()
        done = await transport.run(["cat"], input=b"hello")
    assert done.stdout == b"hello"
    assert MSG_CHANNEL_DATA in sent
    assert MSG_IGNORE not in sent


async def test_it_reconnects_after_the_link_was_cut(farm: Farm) -> None:
    server = farm.start()
    async with connected(server.target()) as transport:
        stream = await transport.stream(["cat"])
        await stream.write(b"one\n")
        assert await stream.read_line() == b"one\n"
        assert server.kill_sessions() > 0
        with pytest.raises(TransportError) as caught:
            await stream.read_line()
        assert caught.value.reason is Reason.HOST_UNREACHABLE
        await stream.close()
        assert (await transport.run(["echo", "back"])).stdout == b"back\n"


async def test_a_command_that_was_cut_off_is_not_taken_for_a_result(farm: Farm) -> None:
    server = farm.start()
    async with connected(server.target()) as transport:
        await transport.run(["true"])
        fifo = server.directory / "ready"
        os.mkfifo(fifo)
        stream = await transport.stream(["sh", "-c", 'echo ready > "$0"; exec sleep 60', str(fifo)])
        await asyncio.to_thread(fifo.read_text)
        finishing = asyncio.ensure_future(stream.finish())
        server.kill_sessions()
        with pytest.raises(TransportError):
            await finishing
        await stream.close()


async def test_all_who_wait_for_one_connect_learn_of_one_failure() -> None:
    target = SshTarget(name="nowhere", address="127.0.0.1", port=free_port())
    async with connected(target) as transport:
        results = await asyncio.gather(
            *(transport.run(["true"]) for _ in range(8)), return_exceptions=True
        )
    assert all(isinstance(result, TransportError) for result in results)
    assert len({id(result) for result in results}) == 1


async def test_a_command_over_its_time_is_unreachable(farm: Farm) -> None:
    async with connected(farm.start().target()) as transport:
        await transport.run(["true"])
        with pytest.raises(TransportError) as caught:
            await transport.run(["sleep", "60"], timeout_s=0.2)
    assert caught.value.reason is Reason.HOST_UNREACHABLE
    assert "sleep 60" in caught.value.line


async def test_a_proxy_jump_leads_to_a_host_behind(
    farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jump, behind = farm.start("jump"), farm.start("behind")
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{jump.port} {jump.host_key}\n")
    (home / ".ssh" / "config").write_text(
        f"Host the-jump\n  HostName 127.0.0.1\n  Port {jump.port}\n"
        f"  IdentityFile {farm.client_key}\n"
    )
    monkeypatch.setenv("HOME", str(home))
    async with connected(behind.target(proxy_jump="the-jump")) as transport:
        assert (await transport.run(["echo", "behind"])).stdout == b"behind\n"
        assert len(jump.sessions()) == 1
