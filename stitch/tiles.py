"""A scene cut into tiles for the web: one file of .splat rows, one JSON that says where they lie.

A viewer reads the JSON, then asks for byte ranges of the data file (HTTP Range), nearest first:

    {"version": 1, "data": "scene.tiles", "row_bytes": 32, "side": side of a tile in the scene's
     unit, "axes": 3 unit rows across, along and up the ground, "gaussians": all of them,
     "tiles": [{"at": [across, along], "first": row, "count": rows, "low": [x, y, z],
                "high": [x, y, z]}]}

Rows are as in `stitch.splat`. A tile holds the gaussians whose middle lies in its square of the
ground; within it they go from the largest and most opaque to the least, so that any prefix of a
tile is a coarser picture of it: a far tile is read in part.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from stitch.cells import Cells, pack, unpack
from stitch.durable import replacing
from stitch.ply import PlyFile
from stitch.sim3 import F64
from stitch.splat import ROW, rows_of, weight_of

VERSION = 1
_PER_TILE = 60_000  # gaussians, on average: 2 MB
_FINEST = 64  # cells along the longer side, from which the tiles are put together


def write_tiles(ply: Path, data: Path, index: Path, axes: F64) -> int:
    """Tiles of the scene in `ply`; how many. `axes` (3,3): rows across, along, up the ground.
    Memory for one tile and one block. Atomic and durable. Raises FileUnreadable, OSError."""
    file = PlyFile.open(ply)
    side = _side(file, axes)
    count = Cells()
    for block in file.blocks():
        count.add(_squares(block.means, axes, side))
    keys, counts = count.total()
    firsts = np.concatenate([[0], np.cumsum(counts)])
    filled = np.zeros(len(keys), np.int64)
    tiles: list[dict[str, Any]] = []
    with replacing(data) as stream:
        stream.truncate(int(firsts[-1]) * ROW.itemsize)
        for block in file.blocks():
            square = _squares(block.means, axes, side)
            order = np.argsort(square, kind="stable")
            rows = rows_of(block)[order]
            tile = np.searchsorted(keys, square[order])
            starts = np.flatnonzero(np.diff(tile, prepend=-1))
            for start, end in zip(starts, [*starts[1:], len(tile)], strict=True):
                number = int(tile[start])
                stream.seek(int(firsts[number] + filled[number]) * ROW.itemsize)
                stream.write(rows[start:end].tobytes())
                filled[number] += end - start
        stream.flush()
        with Path(stream.name).open("r+b") as again:
            for number, at in enumerate(unpack(keys)[:, :2].tolist()):
                first, rows_there = int(firsts[number]), int(counts[number])
                low, high = _sorted(again, first, rows_there)
                tiles.append(
                    {"at": at, "first": first, "count": rows_there, "low": low, "high": high}
                )
    text = {
        "version": VERSION,
        "data": data.name,
        "row_bytes": ROW.itemsize,
        "side": side,
        "axes": axes.tolist(),
        "gaussians": int(firsts[-1]),
        "tiles": tiles,
    }
    with replacing(index) as stream:
        stream.write(json.dumps(text).encode())
    return len(tiles)


def _sorted(stream: BinaryIO, first: int, count: int) -> tuple[list[float], list[float]]:
    """Puts a tile's rows in order; the corners of the box around its middles."""
    stream.seek(first * ROW.itemsize)
    rows = np.frombuffer(stream.read(count * ROW.itemsize), ROW)
    rows = rows[np.argsort(-weight_of(rows), kind="stable")]
    stream.seek(first * ROW.itemsize)
    stream.write(rows.tobytes())
    return rows["position"].min(axis=0).tolist(), rows["position"].max(axis=0).tolist()


def _side(file: PlyFile, axes: F64) -> float:
    """So wide that a tile of the ground that is covered holds _PER_TILE on average."""
    step = max(1, file.count // 100_000)
    some = np.concatenate(
        [np.empty((0, 3))]
        + [block.means[::step].astype(np.float64) @ axes.T for block in file.blocks()]
    )
    some = some[np.isfinite(some).all(axis=1)]
    if len(some) < 2:
        return 1.0
    low, high = np.percentile(some[:, :2], [0.5, 99.5], axis=0)
    cell = max(float((high - low).max()) / _FINEST, 1e-9)
    covered = len(np.unique(np.floor((some[:, :2] - low) / cell), axis=0))
    return cell * float(np.sqrt(covered * _PER_TILE / max(file.count, 1)))


def _squares(means: npt.NDArray[np.floating[Any]], axes: F64, side: float) -> npt.NDArray[np.int64]:
    """(N,) the square of the ground of each; what is far off counts to the outermost ones."""
    at = np.nan_to_num(np.floor(means.astype(np.float64) @ axes[:2].T / side))
    at = np.clip(at, -1e5, 1e5).astype(np.int64)
    return pack(np.concatenate([at, np.zeros((len(at), 1), np.int64)], axis=1))
