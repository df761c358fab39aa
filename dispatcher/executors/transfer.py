"""Files to and from a host: resumed where they stopped, complete only when the sha256 agrees."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from dispatcher.core.model import Reason
from dispatcher.errors import AgentRefusal, TransferError
from dispatcher.executors.agent import AgentLink
from dispatcher.executors.base import Progress
from dispatcher.transport.base import Stream
from worker_agent.protocol import ReceiveRequest, SendRequest, TransferReport

BLOCK = 1 << 20
SMALL = 256 << 10  # bytes; so much of a file may go before an event that waits
BUSY_TRIES = 20
BUSY_DELAY_S = 0.5
T = TypeVar("T")


def small_content(local: Path) -> bytes | None:
    """None where it is larger than SMALL. Raises OSError."""
    with local.open("rb", buffering=0) as stream:
        return stream.readall() if os.fstat(stream.fileno()).st_size <= SMALL else None


async def push_small(
    agent: AgentLink,
    local: Path,
    content: bytes,
    run_dir: str,
    path: str,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> TransferReport:
    """The `content` of `local`, of at most SMALL bytes, to `run_dir`/`path` in one call.

    Raises TransferError when it is not `sha256`, HostError.
    """
    began = time.monotonic()
    found = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, found):
        raise TransferError(
            Reason.TRANSFER_CORRUPT,
            f"{local} cannot be sent",
            where=agent.name,
            why=f"its SHA-256 is {found}, not {sha256}",
            fix="Check the disk it lies on",
        )
    request = ReceiveRequest(run_dir=run_dir, path=path, bytes=len(content), sha256=found)
    there = await unless_busy(
        partial(agent.call_one, "receive", request, TransferReport, body=content)
    )
    if progress:
        progress(len(content), len(content))
    return _timed(there, began)


async def unless_busy(once: Callable[[], Awaitable[T]]) -> T:
    """A transfer that lost its link may still hold the file there until sshd ends it."""
    for _ in range(BUSY_TRIES):
        try:
            return await once()
        except AgentRefusal as refusal:
            if refusal.refusal.error != "busy":
                raise
        await asyncio.sleep(BUSY_DELAY_S)
    return await once()


async def collect(
    agent: AgentLink,
    run_dir: str,
    path: str,
    local: Path,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> TransferReport:
    """`run_dir`/`path` on the agent's host to `local`, by way of `local`.part.

    Raises TransferError when the disk here is full or what arrived is not what lies there (or not
    `sha256`), AgentRefusal when there is no such file, TransportError when the link is lost: then
    the next collection goes on from there.
    """
    began = time.monotonic()
    part = local.with_name(local.name + ".part")
    wanted = sha256
    try:
        local.parent.mkdir(parents=True, exist_ok=True)
        if (
            sha256 is not None
            and _size(local, missing=-1) >= 0
            and await asyncio.to_thread(file_sha256, local) == sha256
        ):
            return TransferReport(path=path, bytes=_size(local), sha256=sha256, complete=True)
        request = SendRequest(run_dir=run_dir, path=path)
        for _ in range(2):
            try:
                report, rest = await _collect_into(agent, request, part, progress)
            except AgentRefusal as refusal:
                if refusal.refusal.error != "bad_request" or not _size(part, missing=0):
                    raise
            else:
                wanted = sha256 or report.sha256
                if await asyncio.to_thread(_complete, part, rest, wanted, local):
                    return _timed(report, began)
                if report.sha256 != wanted:
                    break
            part.unlink(missing_ok=True)  # it was of another file, or of an older version of it
    except OSError as error:
        raise local_error(agent.name, local, error) from None
    raise TransferError(
        Reason.TRANSFER_CORRUPT,
        f"{path} did not arrive whole",
        where=agent.name,
        why=f"its sha256 is not {wanted}" if wanted else "",
        fix="Check the disks; the file on the host is untouched",
    )


async def _collect_into(
    agent: AgentLink, request: SendRequest, part: Path, progress: Progress | None
) -> tuple[TransferReport, bytes]:
    """The host's report, and what belongs at the end of `part` still."""
    offset = _size(part, missing=0)
    request = replace(request, offset=offset)
    report, content = await _small(agent, request)
    if report.complete:
        if progress:
            progress(report.bytes, report.bytes)
        return report, content
    stream = await agent.open("send")
    try:
        await stream.write(request.to_json().encode() + b"\n")
        await stream.write_eof()
        report = await agent.first_reply("send", stream, TransferReport)
        with part.open("ab") as sink:
            received = await _read_file(stream, sink, offset, report.bytes, progress)
        if received < report.bytes:
            agent.check("send", await stream.finish())
    finally:
        await stream.close()
    return report, b""


async def _small(agent: AgentLink, request: SendRequest) -> tuple[TransferReport, bytes]:
    """The report on a file with what is still to come of it; without, and not complete, when that
    is much."""
    done = await agent.ask("send", replace(request, at_most=SMALL))
    agent.check("send", done)
    line, _, content = done.stdout.partition(b"\n")
    return agent.decode("send", line, TransferReport), content


async def _read_file(
    stream: Stream, sink: BinaryIO, offset: int, size: int, progress: Progress | None
) -> int:
    while offset < size:
        block = await stream.read(min(BLOCK, size - offset))
        if not block:
            break
        await asyncio.to_thread(sink.write, block)
        offset += len(block)
        if progress:
            progress(offset, size)
    return offset


def _size(path: Path, missing: int | None = None) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        if missing is None:
            raise
        return missing


def file_sha256(path: Path) -> str:
    """Hex digest of a file. Raises OSError."""
    with path.open("rb", buffering=0) as stream:
        if os.fstat(stream.fileno()).st_size <= SMALL:  # a buffer for more costs more than the hash
            return hashlib.sha256(stream.readall()).hexdigest()
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _complete(part: Path, rest: bytes, wanted: str | None, local: Path) -> bool:
    """Add `rest`, and when the whole is what is wanted put it in its place, durably."""
    with part.open("ab") as sink:
        sink.write(rest)
        sink.flush()
        os.fsync(sink.fileno())
    if file_sha256(part) != wanted:
        return False
    part.replace(local)
    directory = os.open(local.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return True


def _timed(report: TransferReport, began: float) -> TransferReport:
    return TransferReport(
        path=report.path,
        bytes=report.bytes,
        sha256=report.sha256,
        complete=True,
        seconds=time.monotonic() - began,
    )


def local_error(host: str, local: Path, error: OSError) -> TransferError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    missing = isinstance(error, FileNotFoundError)
    reason = Reason.DISK_FULL if full else Reason.TRANSFER_FAILED
    return TransferError(
        Reason.INPUT_MISSING if missing else reason,
        f"{error.filename or local}",
        where=f"transfer with {host}",
        why=error.strerror or str(error),
        fix="Free space on this machine" if full else "Check the path and its permissions",
    )
