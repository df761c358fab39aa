"""What is kept of what an attempt prints: the beginning and the end, however much it is.

A stage that goes wrong may print the same line for hours. Its log file keeps its length, so that
whoever appends need not know, but has a hole in the middle that takes no space. Who follows it is
sent the beginning as it is written, and what comes after it once the attempt is over.
"""

from __future__ import annotations

from pathlib import Path

HEAD_BYTES = TAIL_BYTES = 8 << 20
_STEP_BYTES = 1 << 20  # so much more must have been printed before the hole grows
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h


class LogCap:
    """Call `tick` often, while the stage writes to `log`."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._hole = HEAD_BYTES  # where it ends

    def tick(self) -> None:
        """Where the file system makes no holes, all of it stays."""
        try:
            end = self._log.stat().st_size - TAIL_BYTES
            if end - self._hole < _STEP_BYTES:
                return
            with self._log.open("r+b") as stream:
                _punch(stream.fileno(), HEAD_BYTES, end - HEAD_BYTES)
        except OSError:
            return  # somebody removed it: no reason to end the stage
        self._hole = end


def _punch(descriptor: int, offset: int, count: int) -> None:
    try:
        import ctypes
    except ImportError:  # a stripped Python
        return
    where = (ctypes.c_longlong(offset), ctypes.c_longlong(count))
    ctypes.CDLL(None).fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, *where)


def read_log(log: Path, offset: int, limit: int, *, over: bool) -> bytes:
    """From `offset` on, of what is told of a log: the file, but for its middle where it is long.
    The same bytes at the same offset whenever it is asked."""
    try:
        size = log.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return b""
    if offset < HEAD_BYTES:
        return read_from(log, offset, min(limit, HEAD_BYTES - offset))
    if not over:
        return b""
    left_out = size - HEAD_BYTES - TAIL_BYTES
    if left_out <= 0:
        return read_from(log, offset, limit)
    said = f"\n[cosma: {left_out} bytes of this log are left out here]\n".encode()
    at = offset - HEAD_BYTES
    if at < len(said):
        return said[at : at + limit]
    return read_from(log, HEAD_BYTES + left_out + at - len(said), limit)


def read_from(path: Path, offset: int, limit: int) -> bytes:
    """Of a file that grows; b"" where it is not there yet."""
    try:
        if path.stat().st_size <= offset:
            return b""
        with path.open("rb", buffering=0) as stream:
            stream.seek(offset)
            return stream.read(limit)
    except (FileNotFoundError, NotADirectoryError):
        return b""
