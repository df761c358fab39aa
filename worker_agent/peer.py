"""Pulling a file from another host of the farm, with the key that was made for it."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import BinaryIO

from worker_agent.block_messages import GiveRequest
from worker_agent.block_size import BLOCK_BYTES
from worker_agent.blocks import Arrival
from worker_agent.digests import SHA256, available
from worker_agent.far_side import asked
from worker_agent.messages import FailureCode
from worker_agent.partial import Partial
from worker_agent.protocol import Peer
from worker_agent.refusal import RefusedError, failed

_AT_ONCE = 256 << 10  # stays in the processor's cache
_BUFFERS = 8  # blocks: that many may wait to be hashed


def pull(
    peer: Peer, part: Partial, size: int, bytes_s: float | None, *, hashed: bool
) -> str | None:
    """All of `part`, proven block by block and as a whole; what is there already is not sent again.
    Returns its SHA-256, taken beside it, if it is to be `hashed`.

    Raises RefusedError: transfer_failed with ssh's own words, transfer_corrupt, disk_full,
    input_missing, tool_missing.
    """
    try:
        return _pull_by(available()[0], peer, part, size, bytes_s, hashed)
    except RefusedError as error:
        # The other host may have no library for the fast one.
        if error.refusal.error != "bad_request" or available()[0] == SHA256:
            raise
        return _pull_by(SHA256, peer, part, size, bytes_s, hashed)


def _pull_by(
    algorithm: str, peer: Peer, part: Partial, size: int, bytes_s: float | None, hashed: bool
) -> str | None:
    arrival = Arrival(part, size, algorithm, alone=True)
    request = GiveRequest(
        bytes=size,
        algorithm=algorithm,
        digests=arrival.here(partial=True).digests,
        bytes_s=bytes_s or 0.0,
    )
    # The child inherits the lock: it may outlive a killed verb.
    with asked(peer, "give", request, (part.descriptor,)) as stream:
        if not hashed:
            _read(arrival, stream)
            return None
        with ThreadPoolExecutor(1) as pool:
            beside = _Sha256(part.descriptor)
            hashing = pool.submit(beside.whole)
            arrival.passed = beside.take
            try:
                _read(arrival, stream)
            except BaseException:
                beside.end(0)
                raise
            beside.end(size)
            return hashing.result()


def _read(arrival: Arrival, stream: BinaryIO) -> None:
    if not arrival.read(stream):
        raise failed(FailureCode.TRANSFER_FAILED, "the stream of blocks broke off")


class _Sha256:
    """Of a file that comes in order, by a thread beside: each block as it came, and what was there
    before from the file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._come: SimpleQueue[tuple[int, memoryview]] = SimpleQueue()
        self._free: SimpleQueue[memoryview | None] = SimpleQueue()
        self._next = 0
        for _ in range(_BUFFERS - 1):
            self._free.put(memoryview(bytearray(BLOCK_BYTES)))

    def take(self, block: memoryview, offset: int) -> memoryview:
        """`block` is right; the memory for the next one. Raises RefusedError, OSError."""
        if offset < self._next:
            raise RefusedError("bad_request", f"the block at byte {offset} comes out of order")
        self._next = offset + len(block)
        self._come.put((offset, block))
        free = self._free.get()
        if free is None:
            raise OSError(None, "what has arrived cannot be read again")
        return free

    def end(self, size: int) -> None:
        """So long is the file; 0: it will not be whole."""
        self._come.put((size, memoryview(b"")))

    def whole(self) -> str:
        """Of all, once the end is told; nothing of use where it is not whole. Raises OSError."""
        found = hashlib.sha256()
        at = 0
        try:
            while True:
                offset, block = self._come.get()
                self._read(found, at, offset)
                if not block:
                    return found.hexdigest()
                found.update(block)
                at = offset + len(block)
                self._free.put(memoryview(block.obj))
        finally:
            self._free.put(None)

    def _read(self, found: hashlib._Hash, at: int, upto: int) -> None:
        buffer = memoryview(bytearray(_AT_ONCE)) if at < upto else memoryview(b"")
        while at < upto:
            count = os.preadv(self._descriptor, [buffer[: upto - at]], at)
            if not count:
                raise OSError(None, "what has arrived became shorter")
            found.update(buffer[:count])
            at += count
