"""Pictures as files: PNG with a world file, and GeoTIFF where the scene is georeferenced."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stitch.durable import replacing

WGS84 = 4326
"""EPSG code of latitude and longitude as GPS tells them."""

NO_DATA = -9999.0
_LONG, _SHORT, _DOUBLE, _ASCII = 4, 3, 12, 2
_SIZES = {_LONG: "I", _SHORT: "H", _DOUBLE: "d"}


def write_png(path: Path, image: npt.NDArray[Any]) -> None:
    """(H,W,3) or (H,W,4) bytes, or (H,W) 16 bit grey. Atomic and durable."""
    grey = image.ndim == 2
    rows = np.ascontiguousarray(image, ">u2" if grey else "u1")
    height, width = rows.shape[:2]
    kind = 0 if grey else {3: 2, 4: 6}[rows.shape[2]]
    header = struct.pack(">IIBBBBB", width, height, 16 if grey else 8, kind, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    with replacing(path) as stream:
        stream.write(b"\x89PNG\r\n\x1a\n")
        for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 6)), (b"IEND", b"")):
            stream.write(struct.pack(">I", len(data)) + name + data)
            stream.write(struct.pack(">I", zlib.crc32(name + data)))


def write_world_file(path: Path, west: float, north: float, pixel: float) -> None:
    """As ESRI's: six lines; the last two are the middle of the first pixel."""
    values = (pixel, 0.0, 0.0, -pixel, west + pixel / 2, north - pixel / 2)
    with replacing(path) as stream:
        stream.write("".join(f"{value:.12g}\n" for value in values).encode())


def write_geotiff(
    path: Path, image: npt.NDArray[Any], west: float, north: float, pixel: tuple[float, float]
) -> None:
    """(H,W,4) bytes, the last of them alpha, or (H,W) float32 with NO_DATA; longitude and latitude
    (WGS84) of the outer corner of the first pixel, and degrees a pixel eastwards and southwards.

    Baseline TIFF 6.0, deflated strips, and the keys of OGC GeoTIFF 1.1. Atomic and durable.
    """
    flat = image.ndim == 2
    rows = np.ascontiguousarray(image, "<f4" if flat else "u1")
    height, width = rows.shape[:2]
    bands = 1 if flat else 4
    each = max(1, (1 << 18) // (width * bands * rows.itemsize))  # rows in a strip
    strips = [zlib.compress(rows[k : k + each].tobytes(), 6) for k in range(0, height, each)]
    lengths = [len(strip) for strip in strips]
    starts = [8 + sum(lengths[:k]) for k in range(len(strips))]
    keys = (1, 1, 0, 3, 1024, 0, 1, 2, 1025, 0, 1, 1, 2048, 0, 1, WGS84)
    tags: list[tuple[int, int, Any]] = [
        (256, _LONG, [width]),
        (257, _LONG, [height]),
        (258, _SHORT, [32] if flat else [8] * 4),
        (259, _SHORT, [8]),  # deflate
        (262, _SHORT, [1 if flat else 2]),
        (273, _LONG, starts),
        (277, _SHORT, [bands]),
        (278, _LONG, [each]),
        (279, _LONG, lengths),
        (284, _SHORT, [1]),
        *([] if flat else [(338, _SHORT, [2])]),  # alpha, not multiplied in
        (339, _SHORT, [3] if flat else [1] * 4),
        (33550, _DOUBLE, [pixel[0], pixel[1], 0.0]),
        (33922, _DOUBLE, [0.0, 0.0, 0.0, west, north, 0.0]),
        (34735, _SHORT, keys),
        *([(42113, _ASCII, f"{NO_DATA:g}\0".encode())] if flat else []),
    ]
    with replacing(path) as stream:
        where = 8 + sum(lengths)
        where += where % 2
        stream.write(struct.pack("<2sHI", b"II", 42, where))
        for strip in strips:
            stream.write(strip)
        stream.write(b"\0" * (where - 8 - sum(lengths)))
        stream.write(_directory(tags, where))


def _directory(tags: list[tuple[int, int, Any]], where: int) -> bytes:
    """An image file directory that begins at `where`, with the values that do not fit into it."""
    head, tail = struct.pack("<H", len(tags)), b""
    after = where + 2 + 12 * len(tags) + 4
    for tag, kind, values in tags:
        data = values if kind == _ASCII else struct.pack(f"<{len(values)}{_SIZES[kind]}", *values)
        field = data.ljust(4, b"\0")
        if len(data) > 4:
            field = struct.pack("<I", after + len(tail))
            tail += data + b"\0" * (len(data) % 2)
        head += struct.pack("<HHI", tag, kind, len(values)) + field
    return head + struct.pack("<I", 0) + tail
