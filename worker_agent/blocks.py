"""The verbs `arrived` and `take`: a file that comes in blocks, over one stream or several.

Every block is checked before it is written, and the file as a whole before it gets its name. What
lies here proves itself: a transfer that was cut off goes on by comparing digests, not by a record
of what was done.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from worker_agent.block_messages import (
    Arrived,
    ArrivedRequest,
    Block,
    TakeRequest,
    TransferReport,
)
from worker_agent.block_size import BLOCK_BYTES
from worker_agent.digests import Digest, available, digest_by
from worker_agent.messages import FailureCode, ProtocolError, Refusal
from worker_agent.partial import Partial, disk_full, opened, part_path
from worker_agent.paths import inside, run_directory
from worker_agent.refusal import RefusedError, failed, is_disk_full

_WRITE_OUT_BYTES = 64 << 20


def arrived(request: ArrivedRequest) -> TransferReport:
    """How large the file is, or its .part; that proves nothing, but is quick to tell."""
    target = inside(run_directory(request.run_dir), request.path)
    for path in (target, part_path(target)):
        if path.is_file():
            size = path.stat().st_size
            return TransferReport(
                path=request.path, bytes=size, sha256=None, complete=path == target
            )
    return TransferReport(path=request.path, bytes=0, sha256=None, complete=False)


def is_here(target: Path, size: int) -> bool:
    """A file of that size; whether it is the right one, only its content tells."""
    return target.is_file() and target.stat().st_size == size


def blocks_of(stream: BinaryIO, size: int, digest: Digest) -> Iterator[bytes]:
    """Digests of the blocks of a file of `size` bytes, as far as `stream` has them whole."""
    buffer = memoryview(bytearray(BLOCK_BYTES))
    for offset in range(0, size, BLOCK_BYTES):
        wanted = buffer[: min(BLOCK_BYTES, size - offset)]
        if _fill(stream, wanted) < len(wanted):
            return
        yield digest(wanted)


def take(request: TakeRequest, source: BinaryIO) -> Iterator[TransferReport | Arrived]:
    """Say that blocks may come, what is here already, and then how many bytes of those that came
    were right and are here.

    The last one makes a file of them (see protocol.Block). The stream may end before it: what was
    taken stays. Raises RefusedError: transfer_corrupt, disk_full with the bytes missing, busy,
    bad_request.
    """
    began = time.monotonic()
    target = inside(run_directory(request.run_dir), request.path)
    algorithm = next(name for name in available() if name in request.algorithms)
    adds = request.shared and not request.compare
    if adds and is_here(target, request.bytes) and not part_path(target).exists():
        raise RefusedError("bad_request", f"{target} is complete: nothing can be added")
    with opened(target, shared=request.shared) as part:
        if adds and part.size() == 0 and is_here(target, request.bytes):
            part.drop_if_empty()  # it was completed since, and this is a new one
            raise RefusedError("bad_request", f"{target} is complete: nothing can be added")
        part.require_space(request.bytes)
        yield _report(request, 0, began)
        arrival = Arrival(part, request.bytes, algorithm, alone=not request.shared)
        if request.compare:
            yield arrival.here()
        complete = arrival.read(source)
        if complete:
            part.settle()
        else:
            part.drop_if_empty()
    yield _report(request, arrival.taken, began, complete=complete)


def _report(
    request: TakeRequest, taken: int, began: float, *, complete: bool = False
) -> TransferReport:
    return TransferReport(
        path=request.path,
        bytes=taken,
        sha256=None,
        complete=complete,
        seconds=round(time.monotonic() - began, 3),
    )


@dataclass(slots=True)
class Arrival:
    """Blocks that come for `part`. Only who is `alone` may trust what it has seen to be there
    still, and may say that the file is whole."""

    part: Partial
    size: int
    algorithm: str
    alone: bool
    # Keeps a block that was written, at its offset, and gives the memory for the next one.
    passed: Callable[[memoryview, int], memoryview] | None = None
    taken: int = 0  # bytes
    _seen: dict[int, bytes] = field(default_factory=dict)  # offset -> digest
    _unwritten: int = 0
    _writing_out: threading.Thread | None = None

    def here(self, *, partial: bool = False) -> Arrived:
        """Of the file itself, or (with `partial` only) of its .part file: that needs no second
        look then."""
        digest = digest_by(self.algorithm)
        target = self.part.target
        published = not partial and is_here(target, self.size)
        with (target if published else self.part.path).open("rb", buffering=0) as stream:
            digests = list(blocks_of(stream, self.size, digest))
        if not published:
            self._seen = {index * BLOCK_BYTES: known for index, known in enumerate(digests)}
        known = tuple(found.hex() for found in digests)
        return Arrived(published=published, algorithm=self.algorithm, digests=known)

    def read(self, source: BinaryIO) -> bool:
        """True when the last block came and all that lies here is as it says; False when the
        stream ended before. Raises RefusedError as `take`."""
        digest = digest_by(self.algorithm)
        buffer = memoryview(bytearray(BLOCK_BYTES))
        # An eighth less CPU at both ends than with the usual 64 KiB: fewer turns. What is no pipe,
        # or has no more room for this user, does without.
        with contextlib.suppress(OSError):
            fcntl.fcntl(source, fcntl.F_SETPIPE_SZ, BLOCK_BYTES)
        try:
            while (line := source.readline()).endswith(b"\n"):
                head = _head(line)
                if head.bytes == 0:
                    self._prove(digest, head)
                    return True
                if not (0 < head.bytes <= BLOCK_BYTES and self._fits(head)):
                    raise RefusedError("bad_request", f"no block of this file: {head.to_json()}")
                block = buffer[: head.bytes]
                if _fill(source, block) < len(block):
                    return False
                found = digest(block)
                if found.hex() != head.digest:
                    raise failed(
                        FailureCode.TRANSFER_CORRUPT,
                        f"{self.part.target}: the block at byte {head.offset} is not what was "
                        "sent: send it again",
                    )
                self._write(block, head.offset)
                self._seen[head.offset] = found
                self.taken += len(block)
                if self.passed is not None:
                    buffer = self.passed(block, head.offset)
            return False
        finally:
            if self._writing_out is not None:
                self._writing_out.join()

    def _fits(self, head: Block) -> bool:
        end = head.offset + head.bytes
        whole = head.bytes == BLOCK_BYTES or end == self.size
        return whole and head.offset >= 0 and head.offset % BLOCK_BYTES == 0 and end <= self.size

    def _write(self, block: memoryview, offset: int) -> None:
        while block:
            try:
                written = os.pwrite(self.part.descriptor, block, offset)
            except OSError as error:
                if is_disk_full(error):
                    missing = self.size - min(self.size, self.part.size())
                    raise disk_full(self.part.target, max(missing, len(block))) from None
                raise
            block, offset = block[written:], offset + written
            self._unwritten += written
        self._write_out()

    def _write_out(self) -> None:
        """Now and then, beside the transfer: the last fsync must not wait for gigabytes."""
        busy = self._writing_out is not None and self._writing_out.is_alive()
        if self._unwritten < _WRITE_OUT_BYTES or busy:
            return
        self._unwritten = 0
        # What is wrong with the disk shows at the last fsync again.
        self._writing_out = threading.Thread(target=_quietly_sync, args=(self.part.descriptor,))
        self._writing_out.start()

    def _prove(self, digest: Digest, last: Block) -> None:
        """Raises RefusedError (transfer_corrupt) unless all blocks are here and right."""
        if not self.alone:
            raise RefusedError("bad_request", "a stream beside others cannot complete the file")
        os.ftruncate(self.part.descriptor, self.size)
        buffer = memoryview(bytearray(BLOCK_BYTES))
        found = bytearray()
        for offset in range(0, self.size, BLOCK_BYTES):
            known = self._seen.get(offset)
            if known is None:
                block = buffer[: min(BLOCK_BYTES, self.size - offset)]
                os.preadv(self.part.descriptor, [block], offset)
                known = digest(block)
            found += known
        if digest(found).hex() != last.digest:
            raise failed(
                FailureCode.TRANSFER_CORRUPT,
                f"{self.part.target}: what lies here is not what was sent: send it again",
            )


def _head(line: bytes) -> Block:
    try:
        return Block.from_json(line)
    except ProtocolError as error:
        wrong = RefusedError("bad_request", str(error))
    try:
        said = Refusal.from_json(line)
    except ProtocolError:
        raise wrong from None
    raise failed(said.error, said.message)


def _fill(source: BinaryIO, block: memoryview) -> int:
    """Bytes read; fewer than asked for only at the end of the stream."""
    at = 0
    while at < len(block):
        count: int = source.readinto(block[at:])  # type: ignore[attr-defined]
        if not count:
            break
        at += count
    return at


def _quietly_sync(descriptor: int) -> None:
    try:
        os.fdatasync(descriptor)
    except OSError:
        return
