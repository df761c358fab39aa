"""The verb `unpack`: have here what a job's stages made on another host.

Many small files come as one stream of the verb `pack`; each is verified when it is here, and what
has arrived is not asked for again.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from worker_agent import attempts
from worker_agent.attempts import AttemptFiles
from worker_agent.checkpoint import Checkpoint
from worker_agent.epoch import check_epoch
from worker_agent.exclusive import alone
from worker_agent.far_side import asked
from worker_agent.frames import sha256_of
from worker_agent.pack import CHECKPOINT, FRAME, LISTING, frames_of
from worker_agent.partial import part_path
from worker_agent.paths import inside, run_directory, work_directory
from worker_agent.protocol import (
    BLOCK_BYTES,
    Artifact,
    FailureCode,
    PackedFile,
    PackItem,
    PackRequest,
    ProtocolError,
    Refusal,
    UnpackReport,
    UnpackRequest,
)
from worker_agent.refusal import RefusedError, failed, is_disk_full

_TELL_S = 1.0
_KEPT_BYTES = 1 << 20  # of a file that was cut off, the beginning is kept from this size on


def unpack(request: UnpackRequest, stdin: BinaryIO) -> Iterator[PackRequest | UnpackReport]:
    """Say what is missing, take it and tell now and then how much has come, say what is missing
    still.

    Raises RefusedError: stale_epoch, busy (another one is at it, or an attempt runs here),
    disk_full, transfer_failed (the stream broke off; what came is kept), transfer_corrupt.
    """
    began = time.monotonic()
    run_dir = run_directory(request.run_dir)
    check_epoch(work_directory(run_dir), request.epoch)
    with alone(run_dir):
        if attempts.lock_is_held(AttemptFiles(run_dir, 0)):
            raise RefusedError("busy", f"{run_dir}: an attempt runs there: cancel it first")
        arrival = _Arrival(run_dir, request)
        wanted = PackRequest(
            run_dir=request.source_run_dir, items=(*arrival.missing(), *request.extras)
        )
        yield wanted
        if request.source is None:
            yield from _taken(arrival, stdin, request.bytes_s)
        elif wanted.items:
            with asked(request.source, "pack", wanted) as stream:
                yield from _taken(arrival, stream, request.bytes_s)
        arrival.settle()
        missing = tuple(dict.fromkeys(item.path for item in arrival.missing()))
        yield arrival.report(time.monotonic() - began, missing)


def _taken(arrival: _Arrival, stream: BinaryIO, bytes_s: float | None) -> Iterator[UnpackReport]:
    """All of a stream, no faster than `bytes_s`."""
    began = told = time.monotonic()
    for _ in arrival.take(stream):
        now = time.monotonic()
        if bytes_s is not None:
            time.sleep(max(0.0, began + arrival.received / bytes_s - now))
        if now - told >= _TELL_S:
            told = now
            yield arrival.report(now - began, ())


@dataclass(slots=True)
class _Arrival:
    """What is here, what is asked for, and what has come."""

    run_dir: Path
    request: UnpackRequest
    files: int = 0
    received: int = 0  # bytes
    _known: dict[str, Artifact] = field(default_factory=dict)  # path -> what is asked for
    _here: set[str] = field(default_factory=set)  # verified
    _written: list[Path] = field(default_factory=list)
    _checkpoint: bytes | None = None

    def __post_init__(self) -> None:
        for item in self.request.files:
            self._expect(item)

    def _expect(self, item: Artifact) -> None:
        self._known[item.path] = item
        if _is_whole(inside(self.run_dir, item.path), item):
            self._found(item)

    def _found(self, item: Artifact) -> None:
        self._here.add(item.path)
        if item.kind == LISTING:
            for frame in frames_of(self.run_dir, item.path):
                self._expect(frame)

    def missing(self) -> list[PackItem]:
        """In the order they were asked for; a listing that is here stands for its frames."""
        items = []
        for item in self.request.files:
            if item.path not in self._here:
                size = _size(part_path(inside(self.run_dir, item.path)))
                skip = size if _KEPT_BYTES <= size <= item.bytes and item.kind != LISTING else 0
                items.append(PackItem(path=item.path, kind=item.kind, skip=skip))
            elif item.kind == LISTING:
                for index, frame in enumerate(frames_of(self.run_dir, item.path)):
                    if frame.path not in self._here:
                        items.append(PackItem(path=item.path, kind=FRAME, skip=index))
                        break
        return items

    def report(self, seconds: float, missing: tuple[str, ...]) -> UnpackReport:
        return UnpackReport(
            files=self.files, bytes=self.received, missing=missing, seconds=round(seconds, 3)
        )

    def take(self, stream: BinaryIO) -> Iterator[None]:
        """All of a `pack`, in blocks; one that ends before it began brought nothing."""
        first = True
        while line := stream.readline():
            head = _head(line)
            first = False
            if not head.path:
                return
            if head.bytes >= 0:
                yield from self._take(head, stream)
        if not first or self.request.source is not None:
            raise failed(FailureCode.TRANSFER_FAILED, "the stream of files broke off")

    def _take(self, head: PackedFile, stream: BinaryIO) -> Iterator[None]:
        item = self._known.get(head.path)
        extra = item is None and any(head.path == e.path for e in self.request.extras)
        if item is None and not extra:
            # A frame of a listing that is not the right one.
            for _ in _blocks(stream, head.bytes):
                pass
            return
        if head.kind == CHECKPOINT:
            content = b"".join(_blocks(stream, head.bytes))
            if hashlib.sha256(content).hexdigest() == head.sha256:
                self._checkpoint = content
            return
        target = inside(self.run_dir, head.path)
        if (yield from self._receive(target, head, item, stream)):
            self.files += 1
            self._written.append(target)
            if item is not None:
                self._found(item)

    def _receive(
        self, target: Path, head: PackedFile, item: Artifact | None, stream: BinaryIO
    ) -> Generator[None, None, bool]:
        """Into the .part file, from where it ends if the beginning was kept; True once verified."""
        target.parent.mkdir(parents=True, exist_ok=True)
        part = part_path(target)
        skipped = 0 if item is None else item.bytes - head.bytes
        begun = skipped > 0 and _size(part) == skipped
        digest = hashlib.sha256()
        with part.open("r+b" if begun else "wb") as sink:
            if begun:
                while block := sink.read(BLOCK_BYTES):
                    digest.update(block)
            try:
                for block in _blocks(stream, head.bytes):
                    digest.update(block)
                    sink.write(block)
                    self.received += len(block)
                    yield
                sink.flush()
            except RefusedError:
                if sink.tell() < _KEPT_BYTES:
                    part.unlink()
                raise
            except OSError as error:
                if not is_disk_full(error):
                    raise
                part.unlink()
                raise failed(
                    FailureCode.DISK_FULL, f"{target}: no space left on this host: free space"
                ) from None
        if digest.hexdigest() == (head.sha256 if item is None else item.sha256):
            part.replace(target)
            return True
        part.unlink()
        if begun:
            raise failed(
                FailureCode.TRANSFER_CORRUPT, f"{target}: its kept beginning was of another file"
            )
        return False

    def settle(self) -> None:
        """Durable before anybody may remove the copy it came from; the checkpoint last."""
        for path in self._written:
            _sync(path)
        for folder in {path.parent for path in self._written}:
            _sync(folder)
        if self._checkpoint is not None:
            Checkpoint.adopt(self.run_dir, self.request.job, self._checkpoint)


def _head(line: bytes) -> PackedFile:
    try:
        return PackedFile.from_json(line)
    except ProtocolError:
        pass
    try:
        refusal = Refusal.from_json(line)
    except ProtocolError:
        raise failed(
            FailureCode.TRANSFER_FAILED, f"not a stream of files: {line[:100]!r}"
        ) from None
    raise failed(FailureCode.TRANSFER_FAILED, refusal.message)


def _blocks(stream: BinaryIO, count: int) -> Iterator[bytes]:
    """Exactly `count` bytes. Raises RefusedError (transfer_failed) when there are fewer."""
    while count:
        block = stream.read(min(BLOCK_BYTES, count))
        if not block:
            raise failed(FailureCode.TRANSFER_FAILED, "the stream of files broke off")
        count -= len(block)
        yield block


def _is_whole(path: Path, item: Artifact) -> bool:
    return path.is_file() and path.stat().st_size == item.bytes and sha256_of(path) == item.sha256


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
