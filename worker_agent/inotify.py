"""Says which directories something was written in, without looking: inotify(7) through ctypes.

Where that is not to be had (a stripped Python, a host whose limit of instances is used up) a
Watcher says so, and whoever needs to know has to look.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

_IN_MODIFY, _IN_MOVED_TO = 0x02, 0x80
_IN_Q_OVERFLOW, _IN_IGNORED = 0x4000, 0x8000
_EVENT = struct.Struct("iIII")  # wd, mask, cookie, length of the name that follows
_BUFFER = 64 * 1024


class Watcher:
    """`descriptor` becomes readable when there is something for `changes`; None: look yourself."""

    def __init__(self) -> None:
        self.descriptor: int | None = None
        try:
            import ctypes

            self._libc = ctypes.CDLL(None, use_errno=True)
            descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        except (ImportError, OSError, AttributeError):
            return
        if descriptor >= 0:
            self.descriptor = descriptor

    def add(self, directory: Path) -> int | None:
        """A number for `changes` and `drop`; None when it is not there, or cannot be watched."""
        if self.descriptor is None:
            return None
        path = os.fsencode(directory)
        number: int = self._libc.inotify_add_watch(self.descriptor, path, _IN_MODIFY | _IN_MOVED_TO)
        return number if number >= 0 else None

    def drop(self, number: int) -> None:
        if self.descriptor is not None:
            self._libc.inotify_rm_watch(self.descriptor, number)

    def changes(self) -> set[tuple[int, str]] | None:
        """(directory, file name) of what was written or renamed into place since the last call;
        None: more than the kernel could keep."""
        found: set[tuple[int, str]] = set()
        while self.descriptor is not None:
            try:
                data = os.read(self.descriptor, _BUFFER)
            except BlockingIOError:
                break
            at = 0
            while at < len(data):
                number, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size + length
                if mask & _IN_Q_OVERFLOW:
                    return None
                if not mask & _IN_IGNORED:
                    name = data[at - length : at].rstrip(b"\0")
                    found.add((number, os.fsdecode(name)))
        return found
