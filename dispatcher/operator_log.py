"""The operator's log on stderr, written by a thread of its own.

Whoever reads it may stop: a pager, a terminal held with Ctrl-S, a full pipe. Written from the
dispatcher's loop, that would stop the renewal of leases and so end the hosts' work.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Iterator

WAITING_LINES = 10_000  # kept for a reader that has stopped; later ones are counted and dropped
LAST_WORDS_S = 2.0  # at the end, for the reader to take what waits

_Lines = queue.Queue[str | None]  # None: the end


class _Handler(logging.Handler):
    """Hands lines to the writer. Never holds a lock while it waits, as nobody may wait for it."""

    def __init__(self, lines: _Lines) -> None:
        super().__init__()
        self._lines = lines
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._dropped:
                self._lines.put_nowait(f"{self._dropped} lines were not written: nobody read them")
                self._dropped = 0
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self._dropped += 1


def _write(lines: _Lines) -> None:
    while (line := lines.get()) is not None:
        data = f"{line}\n".encode(errors="backslashreplace")
        with contextlib.suppress(OSError):  # nobody is there to be told
            while data:
                # Not sys.stderr: it could not be closed at the end while a thread waits within it.
                data = data[os.write(2, data) :]


@contextlib.contextmanager
def operator_log(level: int) -> Iterator[None]:
    """Lines of the logger "cosma" from `level` on, with the time of day, go to stderr meanwhile."""
    lines: _Lines = queue.Queue(WAITING_LINES)
    handler = _Handler(lines)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(handlers=[handler], force=True)
    logging.getLogger("cosma").setLevel(level)
    logging.getLogger("asyncssh").setLevel(logging.ERROR)
    writer = threading.Thread(target=_write, args=(lines,), name="cosma-log", daemon=True)
    writer.start()
    try:
        yield
    finally:
        with contextlib.suppress(queue.Full):
            lines.put(None, timeout=LAST_WORDS_S)
        writer.join(LAST_WORDS_S)
