"""Points as gaussians, and the PLY files that programs other than ours leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from stitch.errors import FileUnreadable
from stitch.gaussians import SH_C0, Gaussians
from stitch.ply import PlyFile

__all__ = ["as_gaussians", "is_whole", "read_any"]

_MAX_HEADER = 1 << 16
_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2",
    "ushort": "u2", "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "<"}
_NEIGHBOURS = 3
_OPACITY = 0.9
_LARGEST = 10.0  # times the median spacing: a stray point is not a ball as wide as the scene


def read_any(path: Path) -> Gaussians:
    """A PLY of gaussians, or of points with x, y, z and maybe red, green, blue (0 to 255 or, as
    floats, 0 to 1). Raises FileUnreadable for anything else and for a file without points."""
    names = _vertex(path)[0].names or ()
    trained = "opacity" in names
    gaussians = PlyFile.open(path).read() if trained else as_gaussians(*_points(path))
    if len(gaussians) == 0:
        raise FileUnreadable(f"{path}: it holds no points")
    return gaussians


def is_whole(path: Path) -> bool:
    """Whether a PLY holds at least one vertex, and all that its header tells of."""
    try:
        row, count, offset, order = _vertex(path)
        if order != "ascii":
            return count > 0 and path.stat().st_size >= offset + count * row.itemsize
        with path.open("rb") as stream:
            stream.seek(offset)
            return 0 < count <= sum(1 for line in stream if line.strip())
    except (FileUnreadable, OSError):
        return False


def as_gaussians(points: npt.NDArray[np.float64], colors: npt.NDArray[np.float64]) -> Gaussians:
    """One round, nearly opaque gaussian for each of points (N, 3), as wide as the distance to its
    nearest neighbours; colors (N, 3) in [0, 1]."""
    count = len(points)
    spacing = np.ones(count)
    if count > _NEIGHBOURS:
        found = cKDTree(points).query(points, _NEIGHBOURS + 1)[0][:, 1:]
        spacing = np.sqrt((found**2).mean(axis=1))
        median = float(np.median(spacing[spacing > 0])) if (spacing > 0).any() else 1.0
        spacing = np.clip(spacing, 0.01 * median, _LARGEST * median)
    return Gaussians(
        means=points.astype(np.float32),
        scales=np.repeat(np.log(0.5 * spacing)[:, None], 3, axis=1).astype(np.float32),
        quats=np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1)),
        opacities=np.full(count, np.log(_OPACITY / (1 - _OPACITY)), np.float32),
        sh0=((colors - 0.5) / SH_C0).astype(np.float32),
        shN=np.zeros((count, 0, 3), np.float32),
    )


def _vertex(path: Path) -> tuple[np.dtype[np.void], int, int, str]:
    """(layout of a vertex, their number, offset of the first, format) of a PLY file whose first
    element they are. Raises FileUnreadable."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_MAX_HEADER)
    except OSError as error:
        raise FileUnreadable(f"{path}: {error.strerror}") from None
    end = head.find(b"end_header\n")
    if not head.startswith(b"ply") or end < 0:
        raise FileUnreadable(f"{path}: not a PLY file")
    order, count, columns, inside, elements = "", 0, [], False, 0
    for line in head[:end].decode("ascii", "replace").splitlines():
        words = line.split()
        if words[:1] == ["format"] and len(words) > 1:
            order = words[1]
        elif words[:1] == ["element"] and len(words) == 3:
            elements += 1
            inside = words[1] == "vertex"
            if inside and (elements > 1 or not words[2].isdigit()):
                raise FileUnreadable(f"{path}: its vertices are not its first element")
            count = int(words[2]) if inside else count
        elif inside and words[:1] == ["property"]:
            if len(words) != 3 or words[1] not in _TYPES:
                raise FileUnreadable(f"{path}: the vertex property {line!r} is not supported")
            columns.append((words[2], _ORDERS.get(order, "<") + _TYPES[words[1]]))
    if order not in _ORDERS or not {"x", "y", "z"} <= {name for name, _ in columns}:
        raise FileUnreadable(f"{path}: a PLY without vertices that have x, y and z")
    return np.dtype(columns), count, end + len(b"end_header\n"), order


def _points(path: Path) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    row, count, offset, order = _vertex(path)
    names = row.names or ()
    with path.open("rb") as stream:
        stream.seek(offset)
        if order == "ascii":
            lines = stream.read().decode("ascii", "replace").splitlines()[:count]
            try:
                table = np.array([tuple(map(float, line.split())) for line in lines], float)
                table = table.reshape(len(lines), len(names))
                columns = {name: table[:, place] for place, name in enumerate(names)}
            except (ValueError, IndexError):
                raise FileUnreadable(f"{path}: a vertex is not a line of numbers") from None
            found = len(table)
        else:
            packed = np.frombuffer(stream.read(count * row.itemsize), row)
            columns = {name: packed[name].astype(np.float64) for name in names}
            found = len(packed)
    if found < count:
        raise FileUnreadable(f"{path}: cut short, {count - found} of {count} vertices are missing")
    points = np.stack([columns[axis] for axis in "xyz"], axis=1)
    colors = np.full_like(points, 0.5)
    if {"red", "green", "blue"} <= set(columns):
        colors = np.stack([columns[name] for name in ("red", "green", "blue")], axis=1)
        if row["red"].kind != "f":
            colors /= 255.0
    finite = np.isfinite(points).all(axis=1)
    return points[finite], np.clip(colors[finite], 0.0, 1.0)
