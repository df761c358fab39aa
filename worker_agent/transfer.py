"""The verbs `receive` and `send`: one file as a byte stream, from any offset, verified whole."""

from __future__ import annotations

import time
from pathlib import Path
from typing import BinaryIO

from worker_agent.frames import sha256_of
from worker_agent.partial import BLOCK, Partial, disk_full, opened, part_path
from worker_agent.paths import inside, run_directory
from worker_agent.protocol import FailureCode, ReceiveRequest, SendRequest, TransferReport
from worker_agent.refusal import RefusedError, failed, is_disk_full


def receive(request: ReceiveRequest, source: BinaryIO) -> TransferReport:
    """Append what comes on `source` to the .part file at `offset`; complete when all is there.

    The stream may end early: the reply then says how many bytes lie here. Raises RefusedError:
    transfer_corrupt (the .part file is removed), disk_full with the bytes missing, busy, and
    bad_request for an offset beyond what is here.
    """
    began = time.monotonic()
    target = inside(run_directory(request.run_dir), request.path)
    if is_complete(target, request.bytes, request.sha256):
        return _report(request, request.bytes, request.sha256, began)
    if request.offset < 0:
        path = part_path(target)
        return _report(request, path.stat().st_size if path.is_file() else 0, None, began)
    with opened(target) as part:
        if request.offset > min(part.size(), request.bytes):
            raise RefusedError(
                "bad_request", f"{part.path} has {part.size()} bytes, not {request.offset}"
            )
        with open(part.descriptor, "r+b", buffering=0, closefd=False) as stream:
            stream.truncate(request.offset)
        part.require_space(request.bytes)
        size, digest = _append(part, request, source)
        if size < request.bytes:
            return _report(request, size, None, began)
        part.publish(digest, request.sha256)
    return _report(request, request.bytes, request.sha256, began)


def _append(part: Partial, request: ReceiveRequest, source: BinaryIO) -> tuple[int, str]:
    """(size of the .part file, its SHA-256) once the stream has ended."""
    digest = part.digest(request.offset)
    size = request.offset
    with open(part.descriptor, "r+b", buffering=0, closefd=False) as stream:
        stream.seek(size)
        while size < request.bytes:
            block = source.read(min(BLOCK, request.bytes - size))
            if not block:
                break
            digest.update(block)
            view = memoryview(block)
            while view:
                try:
                    view = view[stream.write(view) :]
                except OSError as error:
                    if is_disk_full(error):
                        missing = request.bytes - size - len(block) + len(view)
                        raise disk_full(part.target, missing) from None
                    raise
            size += len(block)
    return size, digest.hexdigest()


def is_complete(target: Path, size: int | None, sha256: str | None) -> bool:
    """Whether the file lies there already, proven by its hash."""
    if sha256 is None or not target.is_file():
        return False
    if size is not None and target.stat().st_size != size:
        return False
    return sha256_of(target) == sha256


def _report(request: ReceiveRequest, size: int, sha256: str | None, began: float) -> TransferReport:
    return TransferReport(
        path=request.path,
        bytes=size,
        sha256=sha256,
        complete=sha256 is not None,
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
        while wanted and left and (block := stream.read(min(BLOCK, left))):
            output.write(block)
            left -= len(block)
        output.flush()
