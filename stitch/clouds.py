"""Points and their shades of any PLY: gaussians, or a plain cloud with colours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stitch.errors import FileUnreadable
from stitch.gaussians import SH_C0
from stitch.ply import BLOCK, read_header

_FAINT = -2.2  # logit of an opacity of 0.1
_COLOURS = (
    ("red", "green", "blue"),
    ("r", "g", "b"),
    ("diffuse_red", "diffuse_green", "diffuse_blue"),
)
_F32 = npt.NDArray[np.float32]


def solid_points(path: Path, most: int) -> tuple[_F32, _F32]:
    """Places (N,3) and grey values (N,), 0 to 1, of at most `most` vertices spread over the file;
    gaussians that are faint are left out.

    Raises FileUnreadable: no binary little endian PLY, cut short, or its vertices have no colour.
    """
    row, count, offset = read_header(path)
    names = row.names or ()
    for axis in "xyz":
        if axis not in names:
            raise FileUnreadable(f"{path}: its vertices have no {axis}")
    gaussians = "opacity" in names and "f_dc_0" in names
    colours = [f"f_dc_{i}" for i in range(3)] if gaussians else colours_of(path, row)
    step = max(1, -(-count // most))
    means, greys = [np.empty((0, 3), np.float32)], [np.empty(0, np.float32)]
    for table in every(path, row, count, offset, step):
        places = _columns(table, ["x", "y", "z"])
        shade = _columns(table, colours).mean(axis=1)
        chosen = np.isfinite(places).all(axis=1) & np.isfinite(shade)
        if gaussians:
            shade = 0.5 + np.float32(SH_C0) * shade
            chosen &= table["opacity"] > _FAINT
        means.append(places[chosen])
        greys.append(shade[chosen] / np.float32(1.0 if gaussians else white(row[colours[0]])))
    return np.concatenate(means), np.concatenate(greys)


def colours_of(path: Path, row: np.dtype[Any]) -> list[str]:
    """Names of the three columns of colour, or of the one of shade. Raises FileUnreadable."""
    names = row.names or ()
    for triple in _COLOURS:
        if set(triple) <= set(names):
            return list(triple)
    for name in ("intensity", "gray", "grey"):
        if name in names and row[name].kind == "u":
            return [name]
    raise FileUnreadable(
        f"{path}: neither gaussians nor coloured points (red, green, blue): its texture is what "
        "a cloud is registered by"
    )


def white(kind: np.dtype[Any]) -> float:
    """The brightest value of a column of this type."""
    return float(np.iinfo(kind).max) if kind.kind in "iu" else 1.0


def every(
    path: Path, row: np.dtype[Any], count: int, offset: int, step: int, rows: int = BLOCK
) -> Iterator[npt.NDArray[np.void]]:
    """Each `step`-th vertex, `rows` of the file at a time. Raises FileUnreadable."""
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            for start in range(0, count, rows):
                block = np.empty(min(rows, count - start), row)
                if stream.readinto(block.view(np.uint8).data) < block.nbytes:
                    raise FileUnreadable(f"{path}: was cut short while it was read")
                yield block[-start % step :: step]
    except OSError as error:
        raise FileUnreadable(f"{path}: {error.strerror}") from None


def _columns(table: npt.NDArray[np.void], names: list[str]) -> _F32:
    return np.stack([table[name].astype(np.float32) for name in names], axis=1)
