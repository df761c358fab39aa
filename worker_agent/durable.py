"""Writes that survive a power cut, and that a full disk cannot tear. Stdlib only."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from worker_agent.refusal import is_disk_full

_RELEASE_BYTES = 8192
_TAIL_BYTES = 64 * 1024


def write_json(
    path: Path, value: Any, *, reserve: Path | None = None, this_boot: bool = False
) -> None:
    """Durable and atomic: temp file, fsync, rename, fsync of the directory. `this_boot`: only
    atomic, for what says nothing any more once the power was cut.

    On a full disk the text goes into `reserve`, a file that was preallocated on the same file
    system, which then takes the place of `path`. Raises OSError; nothing half-written stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w") as stream:
            stream.write(json.dumps(value))  # `dump`, and lines, would be encoded in Python
            stream.flush()
            if not this_boot:
                os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        if reserve is None or not is_disk_full(error) or not reserve.exists():
            raise
        fill_reserve(reserve, json.dumps(value, separators=(",", ":")).encode())
        reserve.replace(path)
    if not this_boot:
        _sync(path.parent)


def make_durable(path: Path) -> None:
    """What `write_json` wrote for this boot survives a power cut from now on. Raises OSError."""
    _sync(path)
    _sync(path.parent)


def fill_reserve(reserve: Path, data: bytes) -> None:
    """Make `data` the whole content of a preallocated file. Raises OSError (ENOSPC), with the
    file as it was, when `data` is longer than that."""
    descriptor = os.open(reserve, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if len(data) > os.fstat(descriptor).st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(reserve))
        write_all(descriptor, data)
        os.ftruncate(descriptor, len(data))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def overwrite_text(path: Path, text: str) -> None:
    """Replace a short text in place, without new blocks, padded to the length it had. Not atomic
    for a power cut within the write: only for when `write_json` finds the disk full."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        length = os.fstat(descriptor).st_size
        write_all(descriptor, text.encode().ljust(length))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def append_line(descriptor: int, line: bytes, reserve: Path | None = None) -> None:
    """Append `line` whole or not at all; on a full disk blocks of `reserve` make room for it.

    Raises OSError. The lock is one between processes (lockf): the stage and its supervisor share
    the open file, so that flock would not keep them apart.
    """
    fcntl.lockf(descriptor, fcntl.LOCK_EX)
    try:
        size = os.fstat(descriptor).st_size
        while True:
            try:
                written = os.write(descriptor, line)
            except OSError as error:
                if not is_disk_full(error):
                    raise
                written = 0
            if written == len(line):
                return
            if written:
                os.ftruncate(descriptor, size)
            if reserve is None or not _release(reserve):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "events")
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN)


def _release(reserve: Path) -> bool:
    """Give some blocks of a preallocated file back; False when it has none left."""
    try:
        size = reserve.stat().st_size
    except FileNotFoundError:
        return False
    if size == 0:
        return False
    os.truncate(reserve, max(0, size - _RELEASE_BYTES))
    return True


def drop_torn_line(path: Path) -> int:
    """Cut off what follows the last line end: a writer was killed within its line, and the next
    line must not be glued to it. Returns the bytes dropped. Only when nobody writes any more."""
    with path.open("r+b", buffering=0) as stream:
        size = stream.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            begin = max(0, end - _TAIL_BYTES)
            stream.seek(begin)
            newline = stream.read(end - begin).rfind(b"\n")
            if newline >= 0:
                end = begin + newline + 1
                break
            end = begin
        if end < size:
            stream.truncate(end)
    return size - end


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
