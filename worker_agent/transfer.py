"""The verbs `receive` and `send`: one small file in, and one file out from any offset; and
`digest`, of one that is here."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import BinaryIO

from worker_agent.durable import write_all
from worker_agent.frames import sha256_of
from worker_agent.partial import Partial, disk_full, opened
from worker_agent.paths import inside, run_directory
from worker_agent.protocol import (
    BLOCK_BYTES,
    DigestRequest,
    FailureCode,
    ReceiveRequest,
    SendRequest,
    TransferReport,
)
from worker_agent.refusal import RefusedError, failed, is_disk_full


def receive(request: ReceiveRequest, source: BinaryIO) -> TransferReport:
    """Take a small file whole, or leave it when it lies here already.

    Raises RefusedError: transfer_failed when the stream ends early, transfer_corrupt, disk_full
    with the bytes missing, busy. Nothing of it stays then.
    """
    began = time.monotonic()
    target = inside(run_directory(request.run_dir), request.path)
    if not is_complete(target, request.bytes, request.sha256):
        content = source.read(request.bytes)
        if len(content) < request.bytes:
            raise failed(FailureCode.TRANSFER_FAILED, f"{target}: the stream broke off")
        with opened(target) as part:
            os.ftruncate(part.descriptor, 0)
            part.require_space(request.bytes)
            _write(part, content)
            part.publish(hashlib.sha256(content).hexdigest(), request.sha256)
    return TransferReport(
        path=request.path,
        bytes=request.bytes,
        sha256=request.sha256,
        complete=True,
        seconds=round(time.monotonic() - began, 3),
    )


def _write(part: Partial, content: bytes) -> None:
    try:
        write_all(part.descriptor, content)
    except OSError as error:
        part.path.unlink()
        if is_disk_full(error):
            raise disk_full(part.target, len(content)) from None
        raise


def is_complete(target: Path, size: int | None, sha256: str | None) -> bool:
    """Whether the file lies there already, proven by its hash."""
    if sha256 is None or not target.is_file():
        return False
    if size is not None and target.stat().st_size != size:
        return False
    return sha256_of(target) == sha256


def digest(request: DigestRequest) -> TransferReport:
    """Raises RefusedError (input_missing)."""
    began = time.monotonic()
    path = inside(run_directory(request.run_dir), request.path)
    if not path.is_file():
        raise failed(FailureCode.INPUT_MISSING, f"{path} is not a file on this host")
    return TransferReport(
        path=request.path,
        bytes=path.stat().st_size,
        sha256=sha256_of(path),
        complete=True,
        seconds=round(time.monotonic() - began, 3),
    )


def send(request: SendRequest, output: BinaryIO) -> None:
    """One TransferReport line with the size and hash of the whole file, then its bytes from
    `offset` on; when those are more than `at_most` only its size, unread and not complete.

    Raises RefusedError (input_missing, bad_request) before anything was written.
    """
    began = time.monotonic()
    path = inside(run_directory(request.run_dir), request.path)
    if not path.is_file():
        raise failed(FailureCode.INPUT_MISSING, f"{path} is not a file on this host")
    with path.open("rb") as stream:
        size = path.stat().st_size
        if not 0 <= request.offset <= size:
            raise RefusedError("bad_request", f"{path} has {size} bytes, not {request.offset}")
        left = size - request.offset
        wanted = request.at_most is None or left <= request.at_most
        report = TransferReport(
            path=request.path,
            bytes=size,
            sha256=sha256_of(path) if wanted else None,
            complete=wanted,
            seconds=round(time.monotonic() - began, 3),
        )
        output.write(report.to_json().encode() + b"\n")
        stream.seek(request.offset)
        while wanted and left and (block := stream.read(min(BLOCK_BYTES, left))):
            output.write(block)
            left -= len(block)
        output.flush()
