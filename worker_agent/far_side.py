"""A verb of the agent on another host of the farm, by the key that was made for that: one request
goes in, a stream comes out.

The key never lies on a disk here: ssh reads it, and the one host key it trusts, from memory of this
process.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedReader
from typing import BinaryIO, cast

from worker_agent.grant_messages import Peer
from worker_agent.messages import FailureCode, Message
from worker_agent.refusal import RefusedError, failed

_ENDS_S = 5.0
_SSH_FAILED = 255  # ssh's own exit code: any other came from the far side
_ALIAS = "cosma-peer"
_OPTIONS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    f"HostKeyAlias={_ALIAS}",
    "GlobalKnownHostsFile=/dev/null",
    "UpdateHostKeys=no",
    "CheckHostIP=no",
    "IdentitiesOnly=yes",
    "IdentityAgent=none",
    "ForwardAgent=no",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "ControlPath=none",
    "Compression=no",
    "LogLevel=ERROR",
    "ConnectTimeout=5",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=3",
    "KexAlgorithms=^curve25519-sha256",  # OpenSSH's own first choice costs seven times the CPU
    "Ciphers=aes128-gcm@openssh.com,aes256-gcm@openssh.com,aes128-ctr,chacha20-poly1305@openssh.com",
)
# OpenSSH turns Nagle's algorithm off only when its session is open, and sshd, too: until then small
# packets wait for acknowledgements that are held back for 40 ms, twice. A connection that is handed
# to ssh has neither from the start. The system's own module: `socket` takes longer than it saves.
_DIAL = """
import _socket as s, os, sys, time
host = os.fsencode(sys.argv[1])  # of a str it would import a codec for names beyond ASCII: 9 ms
for family, kind, protocol, _, address in s.getaddrinfo(host, sys.argv[2], type=s.SOCK_STREAM):
    connection = s.socket(family, kind, protocol)
    connection.settimeout(5)
    try:
        connection.connect(address)
        break
    except OSError:
        connection.close()
connection.settimeout(None)
connection.setsockopt(s.IPPROTO_TCP, s.TCP_NODELAY, 1)
handed = connection.fileno().to_bytes(4, sys.byteorder)
s.socket(fileno=1).sendmsg([b"0"], [(s.SOL_SOCKET, s.SCM_RIGHTS, handed)])
if os.fork():
    os._exit(0)  # ssh waits for it
for _ in range(100):
    connection.setsockopt(s.IPPROTO_TCP, s.TCP_QUICKACK, 1)
    time.sleep(0.002)
os._exit(0)
"""
_NOT_DIALLED = "proxy dialer did not pass back a connection"


@contextmanager
def asked(
    peer: Peer, verb: str, request: Message, pass_fds: Sequence[int] = ()
) -> Iterator[BinaryIO]:
    """What `verb`, the only one that the key allows, answers there. `pass_fds`: what the child
    must hold as long as it lives.

    Raises RefusedError: bad_request, tool_missing; and transfer_failed with ssh's last words in
    place of the caller's own, where the stream ended because ssh did.
    """
    if peer.destination.startswith("-"):
        raise RefusedError("bad_request", f"{peer.destination!r} is no destination of ssh")
    with (
        _in_memory(peer.private_key) as key,
        _in_memory(f"{_ALIAS} {peer.host_key}\n") as known,
        ExitStack() as running,
    ):
        options = [f"-o{option}" for option in (*_OPTIONS, f"UserKnownHostsFile={known}")]
        port = [] if peer.port is None else ["-p", str(peer.port)]
        command = ["-aTx", *options, "-i", key, *port, "--", peer.destination, verb]
        dial = shlex.join([sys.executable, "-I", "-S", "-c", _DIAL]).replace("%", "%%")
        dialled = [f"-oProxyCommand={dial} '%h' %p 2>/dev/null", "-oProxyUseFdpass=yes"]
        ssh = running.enter_context(_ssh([*dialled, *command], request, pass_fds))
        if ssh.could_not_dial():  # there may be a way that only ssh's own configuration knows
            ssh = running.enter_context(_ssh(command, request, pass_fds))
        try:
            yield ssh.stream
        except RefusedError as error:
            broke_off = error.refusal.error == FailureCode.TRANSFER_FAILED
            if not broke_off or not ssh.failed():
                raise
            why = ssh.last_words() or error.refusal.message
            raise failed(FailureCode.TRANSFER_FAILED, f"ssh {peer.destination}: {why}") from None


@dataclass(frozen=True, slots=True)
class _Ssh:
    process: subprocess.Popen[bytes]
    stream: BufferedReader
    said: BinaryIO

    def could_not_dial(self) -> bool:
        """Known once something came, or it ended."""
        return not self.stream.peek(1) and self.failed() and self.last_words() == _NOT_DIALLED

    def failed(self) -> bool:
        """At the end of its stream it ends at once; before, it may be writing for ever."""
        try:
            return self.process.wait(_ENDS_S) == _SSH_FAILED
        except subprocess.TimeoutExpired:
            return False

    def last_words(self) -> str:
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""


@contextmanager
def _ssh(arguments: Sequence[str], request: Message, pass_fds: Sequence[int]) -> Iterator[_Ssh]:
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                ["ssh", *arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                pass_fds=tuple(pass_fds),
                env={**os.environ, "SHELL": "/bin/sh"},  # whatever the user's is: _DIAL is for it
            )  # fmt: skip
        except FileNotFoundError:
            raise failed(FailureCode.TOOL_MISSING, "ssh is not installed on this host") from None
        asking, stream = cast(BinaryIO, process.stdin), cast(BufferedReader, process.stdout)
        try:
            with contextlib.suppress(BrokenPipeError):  # ssh has ended and said why
                asking.write(request.to_json().encode() + b"\n")
                asking.close()
            yield _Ssh(process, stream, said)
        finally:
            process.kill()
            stream.close()
            process.wait()


@contextmanager
def _in_memory(text: str) -> Iterator[str]:
    """The name under which a child of this process can read it."""
    descriptor = os.memfd_create("cosma", os.MFD_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, text.encode())
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.close(descriptor)
