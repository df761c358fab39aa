"""Reading and writing gaussians as PLY in the layout of the INRIA 3DGS code.

Binary little endian, one float32 column each for x y z, nx ny nz (zeros), f_dc_0..2, f_rest_*,
opacity (logit), scale_0..2 (log), rot_0..3 (wxyz). f_rest is channel-major: all coefficients of
red, then of green, then of blue. A scene may have one column more, `segment`: the number of the
member each gaussian comes from.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from stitch.durable import replacing
from stitch.errors import FileUnreadable
from stitch.gaussians import REST_OF_DEGREE, Gaussians

BLOCK = 1 << 14
"""Gaussians read at a time when a file is streamed: 4 MB of degree 3."""

_ROWS = 1 << 11  # rows put together at a time: what fits a core's cache
_MAX_HEADER = 1 << 16
_LABEL = "segment"
_COUNT_DIGITS = 20
_TYPES = {
    "char": "<i1", "int8": "<i1", "uchar": "<u1", "uint8": "<u1",
    "short": "<i2", "int16": "<i2", "ushort": "<u2", "uint16": "<u2",
    "int": "<i4", "int32": "<i4", "uint": "<u4", "uint32": "<u4",
    "float": "<f4", "float32": "<f4", "double": "<f8", "float64": "<f8",
}  # fmt: skip


def write_ply(path: Path, gaussians: Gaussians) -> None:
    """Atomic and durable. Raises OSError when the disk is full."""
    with writing_ply(path, gaussians.sh_degree) as writer:
        writer.write(gaussians)


@contextmanager
def writing_ply(path: Path, sh_degree: int, *, labelled: bool = False) -> Iterator[PlyWriter]:
    """A PLY of parts that are never all in memory, nor counted before. `labelled`: with the column
    `segment`.

    Atomic and durable: the file is there at the end of the block, after an error it is not.
    Raises OSError when the disk is full.
    """
    with replacing(path) as stream:
        writer = PlyWriter(stream, sh_degree, labelled)
        yield writer
        writer.finish()


class PlyWriter:
    """Made by `writing_ply`."""

    def __init__(self, stream: BinaryIO, sh_degree: int, labelled: bool) -> None:
        self.count = 0
        self._stream = stream
        self._each = REST_OF_DEGREE[sh_degree]
        self._columns = _columns(3 * self._each) + [_LABEL] * labelled
        self._block = np.zeros((_ROWS, len(self._columns)), "<f4")
        stream.write(self._header())

    def write(self, part: Gaussians, segment: int = 0) -> None:
        """Appends; missing bands become zeros. Raises ValueError for a higher degree."""
        given = part.shN.shape[1]
        if given > self._each:
            raise ValueError(f"{given} coefficients above band 0 in a PLY of {self._each}")
        self.count += len(part)
        if part.table is not None and part.table.shape[1] == len(self._columns):
            self._stream.write(np.ascontiguousarray(part.table).data)
            return
        rest = 3 * self._each
        for start in range(0, len(part), _ROWS):
            rows = slice(start, start + _ROWS)
            block = self._block[: len(part.means[rows])]
            block[:, 0:3] = part.means[rows]
            block[:, 6:9] = part.sh0[rows]
            for channel in range(3 if given else 0):
                first = 9 + channel * self._each
                block[:, first : first + given] = part.shN[rows, :, channel]
            block[:, 9 + rest] = part.opacities[rows]
            block[:, 10 + rest : 13 + rest] = part.scales[rows]
            block[:, 13 + rest : 17 + rest] = part.quats[rows]
            block[:, 17 + rest :] = segment
            self._stream.write(block.data)

    def finish(self) -> None:
        """Puts the number of gaussians into the header."""
        self._stream.seek(0)
        self._stream.write(self._header())

    def _header(self) -> bytes:
        """Of the same length whatever the count."""
        lines = [
            "ply",
            "format binary_little_endian 1.0",
            f"comment {'-' * (_COUNT_DIGITS - len(str(self.count)))}",
            f"element vertex {self.count}",
            *(f"property float {name}" for name in self._columns),
            "end_header",
        ]
        return "".join(f"{line}\n" for line in lines).encode("ascii")


@dataclass(frozen=True, slots=True)
class PlyFile:
    """A PLY of gaussians by its header. `open` raises FileUnreadable when the file is not a
    binary PLY of gaussians, or is cut short; so do the readers when it changed since."""

    path: Path
    count: int
    sh_degree: int
    _row: np.dtype[np.void]
    _offset: int

    @classmethod
    def open(cls, path: Path) -> PlyFile:
        row, count, offset = read_header(path)
        names = row.names or ()
        rest = sum(name.startswith("f_rest_") for name in names)
        absent = [name for name in _columns(rest) if name not in names and name[0] != "n"]
        if absent:
            raise FileUnreadable(f"{path}: not a PLY of gaussians, property {absent[0]} is missing")
        if rest % 3 or rest // 3 not in REST_OF_DEGREE:
            raise FileUnreadable(f"{path}: {rest} f_rest properties, expected 0, 9, 24 or 45")
        return cls(path, count, REST_OF_DEGREE.index(rest // 3), row, offset)

    def blocks(self, rows: int = BLOCK) -> Iterator[Gaussians]:
        """All gaussians, `rows` at a time. A block's arrays are overwritten by the next one."""
        table = np.empty(min(rows, self.count), self._row)
        with self.path.open("rb") as stream:
            stream.seek(self._offset)
            for start in range(0, self.count, rows):
                block = table[: min(rows, self.count - start)]
                if stream.readinto(block.view(np.uint8).data) < block.nbytes:
                    raise FileUnreadable(f"{self.path}: was cut short while it was read")
                yield self._gaussians(block)

    def read(self) -> Gaussians:
        """All of them at once, each array for itself: half the time of a table of that size."""
        whole = Gaussians.empty(self.count, self.sh_degree)
        for start, block in zip(itertools.count(step=BLOCK), self.blocks(), strict=False):
            whole.put(start, block)
        return whole

    def _gaussians(self, table: npt.NDArray[np.void]) -> Gaussians:
        each = REST_OF_DEGREE[self.sh_degree]
        if table.dtype == np.dtype([(name, "<f4") for name in _columns(3 * each)]):
            return Gaussians.of_table(table.view("<f4").reshape(len(table), 17 + 3 * each))
        rest = _pick(table, [f"f_rest_{i}" for i in range(3 * each)])
        return Gaussians(
            means=_pick(table, ["x", "y", "z"]),
            scales=_pick(table, [f"scale_{i}" for i in range(3)]),
            quats=_pick(table, [f"rot_{i}" for i in range(4)]),
            opacities=_pick(table, ["opacity"])[:, 0],
            sh0=_pick(table, [f"f_dc_{i}" for i in range(3)]),
            shN=rest.reshape(len(table), 3, each).transpose(0, 2, 1),
        )


def read_ply(path: Path) -> Gaussians:
    """Gaussians of a PLY; properties that are not the layout's own are skipped.

    Raises FileUnreadable when it is not a binary PLY of gaussians, or is cut short.
    """
    return PlyFile.open(path).read()


def _columns(rest: int) -> list[str]:
    return [
        *("x", "y", "z", "nx", "ny", "nz"),
        *(f"f_dc_{i}" for i in range(3)),
        *(f"f_rest_{i}" for i in range(rest)),
        "opacity",
        *(f"scale_{i}" for i in range(3)),
        *(f"rot_{i}" for i in range(4)),
    ]


def _pick(table: npt.NDArray[np.void], names: list[str]) -> npt.NDArray[np.float32]:
    """Columns (N, len(names)): a view when they lie side by side as float32, else a copy."""
    fields: Mapping[str, Any] = table.dtype.fields or {}
    offsets = [fields[name][1] for name in names]
    floats = all(fields[name][0].str == "<f4" for name in names)
    aligned = not names or (offsets[0] % 4 == 0 and table.dtype.itemsize % 4 == 0)
    if floats and aligned and all(np.diff(offsets) == 4):
        first = offsets[0] // 4 if names else 0
        matrix = table.view("<f4").reshape(len(table), table.dtype.itemsize // 4)
        return matrix[:, first : first + len(names)]
    columns = np.empty((len(table), len(names)), np.float32)
    for start in range(0, len(table), _ROWS):
        rows = slice(start, start + _ROWS)
        for index, name in enumerate(names):
            columns[rows, index] = table[name][rows]
    return columns


def read_header(path: Path) -> tuple[np.dtype[np.void], int, int]:
    """Row type, number of rows and first byte of the vertices, of gaussians or of any other
    points. Raises FileUnreadable when it is no binary PLY, or is cut short."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_MAX_HEADER)
            row, count = _header(path, head)
            offset = head.index(b"\n", head.index(b"end_header")) + 1
            missing = offset + count * row.itemsize - path.stat().st_size
    except OSError as error:
        raise FileUnreadable(f"{path}: {error.strerror}") from None
    if missing > 0:
        raise FileUnreadable(f"{path}: cut short, {missing} bytes are missing of {count} vertices")
    return row, count, offset


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
