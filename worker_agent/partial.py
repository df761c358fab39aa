"""A file that is arriving: `<name>.part` beside its target, locked, verified, then renamed."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from worker_agent.block_size import BLOCK_BYTES
from worker_agent.messages import FailureCode
from worker_agent.refusal import RefusedError, failed


@dataclass(frozen=True, slots=True)
class Partial:
    """The open `.part` file. The lock lies on its inode: whoever writes it must hold `descriptor`
    (or inherit it), so that two transfers of one file never mix."""

    target: Path
    path: Path
    descriptor: int

    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def require_space(self, total: int) -> None:
        """Raises RefusedError (disk_full) with the bytes missing to complete `total` bytes."""
        facts = os.statvfs(self.target.parent)
        missing = total - self.size() - facts.f_bavail * facts.f_frsize
        if missing > 0:
            raise disk_full(self.target, missing)

    def digest(self, upto: int | None = None) -> hashlib._Hash:
        """SHA-256 of the first `upto` bytes (of all of them)."""
        digest = hashlib.sha256()
        left = self.size() if upto is None else upto
        with open(self.descriptor, "rb", closefd=False) as stream:
            stream.seek(0)
            while left and (block := stream.read(min(BLOCK_BYTES, left))):
                digest.update(block)
                left -= len(block)
        return digest

    def drop_if_empty(self) -> None:
        """Unless another transfer of the same file is at it."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if self.size() == 0 and _is_named(self.path, self.descriptor):
            self.path.unlink()

    def publish(self, found: str, expected: str | None) -> None:
        """Rename into place, durably. Raises RefusedError (transfer_corrupt) and removes the
        .part file when the digests differ."""
        if expected is not None and found != expected:
            self.path.unlink()
            raise failed(
                FailureCode.TRANSFER_CORRUPT,
                f"{self.target}: SHA-256 is {found[:16]}…, {expected[:16]}… was announced: "
                "removed, send it again",
            )
        self.settle()

    def settle(self) -> None:
        """Rename what was verified into place, durably."""
        os.fsync(self.descriptor)
        self.path.replace(self.target)
        directory = os.open(self.target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def disk_full(target: Path, missing: int) -> RefusedError:
    return failed(
        FailureCode.DISK_FULL,
        f"{target}: {missing} bytes more are needed on this file system: free space",
    )


def part_path(target: Path) -> Path:
    return target.with_name(target.name + ".part")


@contextmanager
def opened(target: Path, *, shared: bool = False) -> Iterator[Partial]:
    """The .part file of `target`, locked; `shared` with others that only add to it. Raises
    RefusedError (busy) while another transfer of the same file runs."""
    target.parent.mkdir(parents=True, exist_ok=True)
    path = part_path(target)
    descriptor = _locked(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        yield Partial(target, path, descriptor)
    finally:
        os.close(descriptor)


def _locked(path: Path, kind: int) -> int:
    """Opened anew until the lock lies on the very file that has the name: another transfer may
    have published the one that was opened, and writing to it would change the finished file."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise RefusedError("busy", f"{path}: another transfer of it runs: wait") from None
        if _is_named(path, descriptor):
            return descriptor
        os.close(descriptor)


def _is_named(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
