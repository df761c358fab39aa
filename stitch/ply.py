"""Reading and writing gaussians as PLY in the layout of the INRIA 3DGS code.

Binary little endian, one float32 column each for x y z, nx ny nz (zeros), f_dc_0..2, f_rest_*,
opacity (logit), scale_0..2 (log), rot_0..3 (wxyz). f_rest is channel-major: all coefficients of
red, then of green, then of blue.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from stitch.durable import replacing
from stitch.errors import FileUnreadable
from stitch.gaussians import REST_OF_DEGREE, Gaussians

_CHUNK = 1 << 16  # rows converted at a time: bounds memory at a few MB
_MAX_HEADER = 1 << 16
_TYPES = {
    "char": "<i1", "int8": "<i1", "uchar": "<u1", "uint8": "<u1",
    "short": "<i2", "int16": "<i2", "ushort": "<u2", "uint16": "<u2",
    "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4",
    "float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8",
}  # fmt: skip


def write_ply(path: Path, gaussians: Gaussians) -> None:
    """Atomic and durable. Raises OSError when the disk is full."""
    write_ply_parts(path, len(gaussians), gaussians.sh_degree, [gaussians])


def write_ply_parts(path: Path, count: int, sh_degree: int, parts: Iterable[Gaussians]) -> None:
    """One PLY from parts that are never all in memory; they must add up to `count`.

    Atomic and durable. Raises OSError when the disk is full, ValueError when the parts do not add
    up or have a higher degree than `sh_degree`.
    """
    rest = REST_OF_DEGREE[sh_degree] * 3
    names = _columns(rest)
    header = "".join(
        [
            "ply\nformat binary_little_endian 1.0\n",
            f"element vertex {count}\n",
            *(f"property float {name}\n" for name in names),
            "end_header\n",
        ]
    )
    with replacing(path) as stream:
        stream.write(header.encode("ascii"))
        written = sum(_write_rows(stream, part, sh_degree, len(names)) for part in parts)
        if written != count:
            raise ValueError(f"{path}: {written} gaussians came, {count} were announced")


def _write_rows(stream: BinaryIO, part: Gaussians, sh_degree: int, columns: int) -> int:
    if part.sh_degree > sh_degree:
        raise ValueError(f"gaussians of degree {part.sh_degree} in a PLY of degree {sh_degree}")
    each, rest = REST_OF_DEGREE[sh_degree], REST_OF_DEGREE[sh_degree] * 3
    for start in range(0, len(part), _CHUNK):
        rows = slice(start, start + _CHUNK)
        count = len(part.means[rows])
        block = np.zeros((count, columns), "<f4")
        higher = np.zeros((count, 3, each), "<f4")
        higher[:, :, : part.shN.shape[1]] = part.shN[rows].transpose(0, 2, 1)
        block[:, 0:3] = part.means[rows]
        block[:, 6:9] = part.sh0[rows]
        block[:, 9 : 9 + rest] = higher.reshape(count, rest)
        block[:, 9 + rest] = part.opacities[rows]
        block[:, 10 + rest : 13 + rest] = part.scales[rows]
        block[:, 13 + rest :] = part.quats[rows]
        stream.write(block.data)
    return len(part)


def read_ply(path: Path) -> Gaussians:
    """Gaussians of a PLY; properties that are not the layout's own are skipped.

    Raises FileUnreadable when it is not a binary PLY of gaussians, or is cut short.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(_MAX_HEADER)
            dtype, count = _header(path, head)
            offset = head.index(b"\n", head.index(b"end_header")) + 1
            missing = offset + count * dtype.itemsize - path.stat().st_size
    except OSError as error:
        raise FileUnreadable(f"{path}: {error.strerror}") from None
    if missing > 0:
        raise FileUnreadable(f"{path}: cut short, {missing} bytes are missing of {count} vertices")
    rest = sum(name.startswith("f_rest_") for name in dtype.names or ())
    absent = [n for n in _columns(rest) if n not in (dtype.names or ()) and n[0] != "n"]
    if absent:
        raise FileUnreadable(f"{path}: not a PLY of gaussians, property {absent[0]} is missing")
    if rest % 3 or rest // 3 not in REST_OF_DEGREE:
        raise FileUnreadable(f"{path}: {rest} f_rest properties, expected 0, 9, 24 or 45")
    if count == 0:
        table = np.empty(0, dtype)
    else:
        table = np.memmap(path, dtype, mode="r", offset=offset, shape=(count,))
    return Gaussians(
        means=_stack(table, ["x", "y", "z"]),
        scales=_stack(table, [f"scale_{i}" for i in range(3)]),
        quats=_stack(table, [f"rot_{i}" for i in range(4)]),
        opacities=_stack(table, ["opacity"])[:, 0],
        sh0=_stack(table, [f"f_dc_{i}" for i in range(3)]),
        shN=_stack(table, [f"f_rest_{i}" for i in range(rest)])
        .reshape(count, 3, rest // 3)
        .transpose(0, 2, 1),
    )


def _columns(rest: int) -> list[str]:
    return [
        *("x", "y", "z", "nx", "ny", "nz"),
        *(f"f_dc_{i}" for i in range(3)),
        *(f"f_rest_{i}" for i in range(rest)),
        "opacity",
        *(f"scale_{i}" for i in range(3)),
        *(f"rot_{i}" for i in range(4)),
    ]


def _stack(table: npt.NDArray[np.void], names: list[str]) -> npt.NDArray[np.float32]:
    columns = np.empty((len(table), len(names)), np.float32)
    for start in range(0, len(table), _CHUNK):
        rows = slice(start, start + _CHUNK)
        for index, name in enumerate(names):
            columns[rows, index] = table[name][rows]
    return columns


def _header(path: Path, head: bytes) -> tuple[np.dtype[np.void], int]:
    """Row type and row count of the vertex element, which must be the first."""
    if not head.startswith(b"ply"):
        raise FileUnreadable(f"{path}: not a PLY file")
    end = head.find(b"end_header")
    if end < 0 or b"\n" not in head[end:]:
        raise FileUnreadable(f"{path}: PLY header has no end")
    lines = [line.split() for line in head[:end].decode("ascii", "replace").splitlines()]
    if ["format", "binary_little_endian", "1.0"] not in lines:
        raise FileUnreadable(f"{path}: only binary little endian PLY is read")
    elements = [line for line in lines if line[:1] == ["element"]]
    if not elements or elements[0][1:2] != ["vertex"] or not elements[0][-1].isdigit():
        raise FileUnreadable(f"{path}: the first element of the PLY is not its vertices")
    columns: list[tuple[str, str]] = []
    for line in lines[lines.index(elements[0]) + 1 :]:
        if line[:1] == ["element"]:
            break
        if line[:1] == ["property"]:
            if len(line) != 3 or line[1] not in _TYPES:
                raise FileUnreadable(f"{path}: property of unknown type: {' '.join(line)}")
            columns.append((line[2], _TYPES[line[1]]))
    try:
        return np.dtype(columns), int(elements[0][-1])
    except ValueError as error:
        raise FileUnreadable(f"{path}: PLY header: {error}") from None
