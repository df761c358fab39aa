"""One box of an MP4 by its path, without reading the rest of the file (ISO/IEC 14496-12, 4.2)."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

__all__ = ["camera_settings_box"]

MAX_BYTES = 1 << 20  # of the box that is wanted; cameras write some 10 KiB
SETTINGS = (b"moov", b"udta", b"GPMF")
Span = tuple[int, int]  # first byte, and the one after the last


def camera_settings_box(path: Path) -> bytes | None:
    """GoPro's settings of the recording; None when the file has none. Raises OSError."""
    with path.open("rb") as stream:
        found = next(_at(stream, SETTINGS, 0, path.stat().st_size), None)
        if found is None or found[1] - found[0] > MAX_BYTES:
            return None
        stream.seek(found[0])
        return stream.read(found[1] - found[0])


def _at(stream: BinaryIO, kinds: Sequence[bytes], start: int, end: int) -> Iterator[Span]:
    """Contents of the boxes that are reached by these kinds, one inside the other."""
    for span in _boxes(stream, kinds[0], start, end):
        if len(kinds) == 1:
            yield span
        else:
            yield from _at(stream, kinds[1:], *span)


def _boxes(stream: BinaryIO, kind: bytes, start: int, end: int) -> Iterator[Span]:
    """Contents of the boxes of one kind, up to where a length makes no sense."""
    while start + 8 <= end:
        stream.seek(start)
        size, name = struct.unpack(">I4s", stream.read(8))
        header = 8
        if size == 1:
            if start + 16 > end:
                return
            size, header = struct.unpack(">Q", stream.read(8))[0], 16
        elif size == 0:  # to the end
            size = end - start
        if size < header or start + size > end:
            return
        if name == kind:
            yield start + header, start + size
        start += size
