"""Pulling a file from another host of the farm, with the key that was made for it.

The key never lies on a disk here: ssh reads it, and the one host key it trusts, from memory of this
process.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import BinaryIO

from worker_agent.block_messages import GiveRequest
from worker_agent.blocks import Arrival
from worker_agent.digests import SHA256, available
from worker_agent.far_side import asked
from worker_agent.messages import FailureCode
from worker_agent.partial import Partial
from worker_agent.protocol import Peer
from worker_agent.refusal import RefusedError, failed

_ALIAS = "cosma-peer"
_AT_ONCE = 256 << 10  # stays in the processor's cache
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


def pull(peer: Peer, part: Partial, size: int, bytes_s: float | None) -> str:
    """All of `part`, proven block by block and as a whole; what is there already is not sent again.
    Returns its SHA-256, taken beside it.

    Raises RefusedError: transfer_failed with ssh's own words, transfer_corrupt, disk_full,
    input_missing, tool_missing.
    """
    try:
        return _pull_by(available()[0], peer, part, size, bytes_s)
    except RefusedError as error:
        # The other host may have no library for the fast one.
        if error.refusal.error != "bad_request" or available()[0] == SHA256:
            raise
        return _pull_by(SHA256, peer, part, size, bytes_s)


def _pull_by(algorithm: str, peer: Peer, part: Partial, size: int, bytes_s: float | None) -> str:
    arrival = Arrival(part, size, algorithm, alone=True)
    request = GiveRequest(
        bytes=size,
        algorithm=algorithm,
        digests=arrival.here(partial=True).digests,
        bytes_s=bytes_s or 0.0,
    )
    with ThreadPoolExecutor(1) as pool, _asked(peer, request, part) as stream:
        behind = _Behind(part.descriptor)
        hashing = pool.submit(behind.sha256, size)
        arrival.passed = behind.passed
        try:
            if not arrival.read(stream):
                raise failed(FailureCode.TRANSFER_FAILED, "the stream of blocks broke off")
        except BaseException:
            behind.passed(-1)
            raise
        behind.passed(size)
        return hashing.result()


class _Behind:
    """Reads a file as far as it has come."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._upto = 0
        self._more = threading.Condition()

    def passed(self, upto: int) -> None:
        """So many bytes are right; -1: there will be no more."""
        with self._more:
            self._upto = upto
            self._more.notify()

    def sha256(self, size: int) -> str:
        """Of all; "" when it will not be whole."""
        found = hashlib.sha256()
        buffer = memoryview(bytearray(_AT_ONCE))
        at = 0
        while at < size:
            with self._more:
                while 0 <= self._upto <= at:
                    self._more.wait()
                upto = self._upto
            if upto < 0:
                return ""
            while at < upto:
                count = os.preadv(self._descriptor, [buffer[: upto - at]], at)
                found.update(buffer[:count])
                at += count
        return found.hexdigest()


@contextmanager
def _asked(peer: Peer, request: GiveRequest, part: Partial) -> Iterator[BinaryIO]:
    with _in_memory(peer.private_key) as key, _in_memory(f"{_ALIAS} {peer.host_key}\n") as known:
        options = (*_OPTIONS, f"UserKnownHostsFile={known}")
        arguments = ["-aTx", *(f"-o{option}" for option in options), "-i", key]
        # The child inherits the lock: it may outlive a killed verb.
        with asked(
            arguments, peer.destination, peer.port, "give", request, (part.descriptor,)
        ) as stream:
            yield stream


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
