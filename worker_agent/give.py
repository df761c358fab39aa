"""The verb `give`: one file in blocks, for another host (sshd runs it for a key of `grant`) or the
dispatcher."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
from pathlib import Path
from typing import BinaryIO

from worker_agent.block_messages import Block, GiveRequest
from worker_agent.block_size import BLOCK_BYTES
from worker_agent.digests import Digest, digest_by
from worker_agent.limit import allowed
from worker_agent.messages import FailureCode
from worker_agent.refusal import RefusedError, failed


def give(request: GiveRequest, output: BinaryIO, limit: str | None) -> None:
    """Write the blocks that the other side lacks, and the word that it is whole. `limit` is what
    a key may read, where another host asks by one; None: the dispatcher asks.

    Raises RefusedError: bad_request, input_missing, transfer_corrupt when it has another size.
    """
    path = Path(request.path) if limit is None else allowed(limit)
    if not path.is_file():
        raise failed(FailureCode.INPUT_MISSING, f"{path} is not a file on its host any more")
    size = path.stat().st_size
    if size != request.bytes:
        raise failed(
            FailureCode.TRANSFER_CORRUPT,
            f"{path} has {size} bytes, {request.bytes} were announced: the source changed, "
            "ingest it again",
        )
    with contextlib.suppress(OSError):  # as in Arrival.read
        fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, BLOCK_BYTES)
    digest = digest_by(request.algorithm)
    found = bytearray()
    sent, began = 0, time.monotonic()
    with path.open("rb", buffering=0) as stream:
        for index, offset in enumerate(range(0, size, BLOCK_BYTES)):
            count = min(BLOCK_BYTES, size - offset)
            known = _digest(digest, stream, offset, count)
            found += known
            if index < len(request.digests) and request.digests[index] == known.hex():
                continue
            _write(output, Block(offset=offset, bytes=count, digest=known.hex()))
            _send(output, stream, offset, count)
            sent += count
            if request.bytes_s:
                time.sleep(max(0.0, began + sent / request.bytes_s - time.monotonic()))
    _write(output, Block(offset=size, bytes=0, digest=digest(found).hex()))
    output.flush()


def _digest(digest: Digest, stream: BinaryIO, offset: int, count: int) -> bytes:
    """Of a block where it lies in the page cache: a copy of it costs as much as its digest."""
    try:
        mapped = mmap.mmap(stream.fileno(), count, access=mmap.ACCESS_COPY, offset=offset)
    except ValueError:
        raise _shorter() from None
    with mapped, memoryview(mapped) as block:
        return digest(block)


def _send(output: BinaryIO, stream: BinaryIO, offset: int, count: int) -> None:
    """Without a copy, too. Were the file changed meanwhile, the other side would see it."""
    output.flush()
    while count:
        sent = os.sendfile(output.fileno(), stream.fileno(), offset, count)
        if not sent:
            raise _shorter()
        offset, count = offset + sent, count - sent


def _shorter() -> RefusedError:
    return failed(FailureCode.TRANSFER_CORRUPT, "the file became shorter: try again")


def _write(output: BinaryIO, head: Block) -> None:
    output.write(head.to_json().encode() + b"\n")
