"""The verb `give`: one file in blocks, for another host (sshd runs it for a key of `grant`) or the
dispatcher.

It starts with every transfer, in an interpreter of its own, and its first byte waits for what is
imported here. Message classes take three times as long to make as all the rest, so that the
request and the lines before the blocks are plain JSON here, and what only a failure needs is
imported when there is one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import stat
import time

from worker_agent.block_size import BLOCK_BYTES
from worker_agent.digests import digest_by
from worker_agent.exit_codes import EXIT_USAGE
from worker_agent.limit import allowed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

    from worker_agent.digests import Digest
    from worker_agent.refusal import RefusedError


def give(asked: bytes, output: BinaryIO, limit: str | None) -> None:
    """Write the blocks that the other side lacks, and the word that it is whole. `asked` is a
    GiveRequest. `limit` is what a key may read, where another host asks by one; None: the
    dispatcher asks.

    Raises RefusedError: bad_request, input_missing, transfer_corrupt when it has another size.
    """
    known, path, size, bytes_s, digest = _understood(asked)
    path = path if limit is None else allowed(limit)
    source = _opened(path, size)
    with contextlib.suppress(OSError):  # as in Arrival.read
        fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, BLOCK_BYTES)
    found = bytearray()
    sent, began = 0, time.monotonic()
    try:
        for index, offset in enumerate(range(0, size, BLOCK_BYTES)):
            count = min(BLOCK_BYTES, size - offset)
            of_block = _digest(digest, source, offset, count)
            found += of_block
            if index < len(known) and known[index] == of_block.hex():
                continue
            _write(output, offset, count, of_block)
            _send(output, source, offset, count)
            sent += count
            if bytes_s:
                time.sleep(max(0.0, began + sent / bytes_s - time.monotonic()))
    finally:
        os.close(source)
    _write(output, size, 0, digest(found))
    output.flush()


def _understood(asked: bytes) -> tuple[list[str], str, int, float, Digest]:
    """Digests of what is there already, path, size, cap in bytes a second, digest of blocks."""
    try:
        request = json.loads(asked)
        known, path, size = request["digests"], request.get("path", ""), request["bytes"]
        bytes_s, algorithm = request.get("bytes_s", 0.0), request["algorithm"]
    except (ValueError, KeyError, TypeError, AttributeError):
        known = path = size = bytes_s = algorithm = None
    if not (
        isinstance(known, list)
        and isinstance(path, str)
        and isinstance(size, int)
        and isinstance(bytes_s, float | int)
        and isinstance(algorithm, str)
    ):
        from worker_agent.refusal import RefusedError

        raise RefusedError("bad_request", "no GiveRequest", exit_code=EXIT_USAGE)
    return known, path, size, bytes_s, digest_by(algorithm)


def _opened(path: str, size: int) -> int:
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path) from None
    there = os.fstat(source)
    if not stat.S_ISREG(there.st_mode):
        os.close(source)
        raise _missing(path)
    if there.st_size != size:
        os.close(source)
        raise _corrupt(
            f"{path} has {there.st_size} bytes, {size} were announced: the source changed, "
            "ingest it again"
        )
    return source


def _digest(digest: Digest, source: int, offset: int, count: int) -> bytes:
    """Of a block where it lies in the page cache: a copy of it costs as much as its digest."""
    try:
        mapped = mmap.mmap(source, count, access=mmap.ACCESS_COPY, offset=offset)
    except ValueError:
        raise _corrupt("the file became shorter: try again") from None
    with mapped, memoryview(mapped) as block:
        return digest(block)


def _send(output: BinaryIO, source: int, offset: int, count: int) -> None:
    """Without a copy, too. Were the file changed meanwhile, the other side would see it."""
    output.flush()
    while count:
        sent = os.sendfile(output.fileno(), source, offset, count)
        if not sent:
            raise _corrupt("the file became shorter: try again")
        offset, count = offset + sent, count - sent


def _write(output: BinaryIO, offset: int, count: int, digest: bytes) -> None:
    """A protocol.Block."""
    line = json.dumps({"offset": offset, "bytes": count, "digest": digest.hex()})
    output.write(line.encode() + b"\n")


def _missing(path: str) -> RefusedError:
    from worker_agent.messages import FailureCode
    from worker_agent.refusal import failed

    return failed(FailureCode.INPUT_MISSING, f"{path} is not a file on its host any more")


def _corrupt(why: str) -> RefusedError:
    from worker_agent.messages import FailureCode
    from worker_agent.refusal import failed

    return failed(FailureCode.TRANSFER_CORRUPT, why)
