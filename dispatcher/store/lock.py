"""One dispatcher per database: an flock that the kernel drops when its holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

from dispatcher.errors import DispatcherLocked
from dispatcher.store.base import StoreError


class AlreadyLocked(DispatcherLocked):
    """Another dispatcher holds the database. `pid` and `host` are as it wrote them down."""

    def __init__(self, path: Path, pid: int | None, host: str) -> None:
        self.pid = pid
        self.host = host
        holder = f"pid {pid} on {host}" if pid is not None else "another process"
        super().__init__(
            f"a dispatcher is running already ({holder})",
            where=str(path),
            fix="use that one, or stop it first",
        )


class DispatcherLock:
    """Held from `acquire` until `release` or the end of the process."""

    def __init__(self, database: Path) -> None:
        self.path = database.with_name(database.name + ".lock")
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Raises AlreadyLocked (exit code 11), StoreError when the file cannot be made."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(
                "cannot lock the database", where=str(self.path), why=error.strerror or str(error)
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, host = _holder(os.read(descriptor, 4096))
            os.close(descriptor)
            raise AlreadyLocked(self.path, pid, host) from None
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, holder, 0)
        except OSError as error:
            os.close(descriptor)
            raise StoreError(
                "cannot lock the database", where=str(self.path), why=error.strerror or str(error)
            ) from None
        self._descriptor = descriptor

    def release(self) -> None:
        """The file stays: removing it would let two processes lock two different files."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def holder_is_gone(database: Path) -> bool:
    """Whether the last dispatcher of the database ran on this machine and has ended; one of
    another machine, or container, cannot be told."""
    try:
        pid, host = _holder(DispatcherLock(database).path.read_bytes())
    except OSError:
        return False
    return pid is not None and host == socket.gethostname() and not Path(f"/proc/{pid}").exists()


def _holder(text: bytes) -> tuple[int | None, str]:
    try:
        written = json.loads(text)
        return int(written["pid"]), str(written["host"])
    except (ValueError, KeyError, TypeError):
        return None, "unknown"  # it is just being written
