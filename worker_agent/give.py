"""The verb `give`: one file for another host, in blocks. sshd runs it for a key of `grant`."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import time
from pathlib import Path
from typing import BinaryIO

from worker_agent.block_messages import BLOCK_BYTES, Block, GiveRequest
from worker_agent.digests import digest_by
from worker_agent.messages import FailureCode
from worker_agent.refusal import RefusedError, failed


def give(limit: str, request: GiveRequest, output: BinaryIO) -> None:
    """Write the blocks that the other side lacks, and the word that it is whole. `limit` is what
    the key may read.

    Raises RefusedError: bad_request, input_missing, transfer_corrupt when it has another size.
    """
    path = _allowed(limit)
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
    buffer = memoryview(bytearray(BLOCK_BYTES))
    found = bytearray()
    sent, began = 0, time.monotonic()
    with path.open("rb", buffering=0) as stream:
        for index in range(-(-size // BLOCK_BYTES)):
            block = buffer[: min(BLOCK_BYTES, size - index * BLOCK_BYTES)]
            if not _read(stream, block):
                raise failed(FailureCode.TRANSFER_CORRUPT, f"{path} became shorter: try again")
            known = digest(block)
            found += known
            if index < len(request.digests) and request.digests[index] == known.hex():
                continue
            _write(output, Block(offset=index * BLOCK_BYTES, bytes=len(block), digest=known.hex()))
            output.write(block)
            sent += len(block)
            if request.bytes_s:
                time.sleep(max(0.0, began + sent / request.bytes_s - time.monotonic()))
    _write(output, Block(offset=size, bytes=0, digest=digest(found).hex()))
    output.flush()


def _allowed(limit: str) -> Path:
    try:
        facts = json.loads(base64.urlsafe_b64decode(limit))
        path, until = Path(facts["path"]), float(facts["until"])
    except (ValueError, KeyError, TypeError):
        raise RefusedError("bad_request", "no file to give") from None
    if time.time() > until:
        raise RefusedError("bad_request", "the key has expired")
    return path


def _read(stream: BinaryIO, block: memoryview) -> bool:
    at = 0
    while at < len(block):
        count: int = stream.readinto(block[at:])  # type: ignore[attr-defined]
        if not count:
            return False
        at += count
    return True


def _write(output: BinaryIO, head: Block) -> None:
    output.write(head.to_json().encode() + b"\n")
