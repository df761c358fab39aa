"""One box of an MP4 by its path, without reading the rest of the file (ISO/IEC 14496-12, 4.2)."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

__all__ = ["camera_settings_box"]

MAX_BYTES = 1 << 20  # of the box that is wanted; cameras write some 10 KiB
SETTINGS = (b"moov", b"udta", b"GPMF")


def camera_settings_box(path: Path) -> bytes | None:
    """GoPro's settings of the recording; None when the file has none. Raises OSError."""
    with path.open("rb") as stream:
        start, end = 0, path.stat().st_size
        for kind in SETTINGS:
            found = _find(stream, kind, start, end)
            if found is None:
                return None
            start, end = found
        if end - start > MAX_BYTES:
            return None
        stream.seek(start)
        return stream.read(end - start)


def _find(stream: BinaryIO, kind: bytes, start: int, end: int) -> tuple[int, int] | None:
    """Where the content of the first box of that kind begins and ends."""
    while start + 8 <= end:
        stream.seek(start)
        size, name = struct.unpack(">I4s", stream.read(8))
        header = 8
        if size == 1:
            size, header = struct.unpack(">Q", stream.read(8))[0], 16
        elif size == 0:  # to the end
            size = end - start
        if size < header or start + size > end:
            return None
        if name == kind:
            return start + header, start + size
        start += size
    return None
