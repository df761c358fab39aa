"""A plain cloud of coloured points as gaussians, so that it is merged as any other member."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from stitch.clouds import colours_of, every, white
from stitch.errors import FileUnreadable
from stitch.gaussians import SH_C0, Gaussians
from stitch.ply import BLOCK, PlyFile, read_header

_OPACITY = 4.0  # logit: 0.98
_SAMPLE = 20_000
_WIDTH = 0.5  # standard deviation of a ball over the distance to the nearest point


@dataclass(frozen=True, slots=True)
class CloudFile:
    """Read as `PlyFile` is: opaque balls of the points' colours, half as wide as they lie apart."""

    path: Path
    count: int
    sh_degree: int
    _width: float
    _names: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> CloudFile:
        """Raises FileUnreadable as `clouds.solid_points`."""
        row, count, offset = read_header(path)
        names = tuple(colours_of(path, row))
        step = max(1, -(-count // _SAMPLE))
        some = np.concatenate(
            [np.empty((0, 3))]
            + [
                np.stack([table[axis].astype(np.float64) for axis in "xyz"], axis=1)
                for table in every(path, row, count, offset, step)
            ]
        )
        some = some[np.isfinite(some).all(axis=1)]
        width = 1.0
        if len(some) > 1:
            apart, _ = cKDTree(some).query(some, k=2)
            # Of a surface, a sample of a hundredth lies ten times as far apart.
            width = _WIDTH * float(np.median(apart[:, 1])) * np.sqrt(len(some) / count)
        return cls(path, count, 0, max(width, 1e-9), names)

    def blocks(self, rows: int = BLOCK) -> Iterator[Gaussians]:
        row, count, offset = read_header(self.path)
        for table in every(self.path, row, count, offset, 1, rows):
            points = np.stack([table[axis].astype(np.float32) for axis in "xyz"], axis=1)
            colour = np.stack([table[name].astype(np.float32) for name in self._names], axis=1)
            if len(self._names) == 1:
                colour = np.repeat(colour, 3, axis=1)
            number = len(points)
            yield Gaussians(
                means=points,
                scales=np.full((number, 3), np.log(self._width)),
                quats=np.tile(np.array([1, 0, 0, 0], np.float32), (number, 1)),
                opacities=np.full(number, _OPACITY),
                sh0=(colour / white(row[self._names[0]]) - 0.5) / SH_C0,
                shN=np.zeros((number, 0, 3), np.float32),
            )


def open_member(path: Path) -> PlyFile | CloudFile:
    """Gaussians, or a plain cloud. Raises FileUnreadable when it is neither, empty, or cut
    short."""
    names = read_header(path)[0].names or ()
    plain = "f_dc_0" not in names and "opacity" not in names
    file = CloudFile.open(path) if plain else PlyFile.open(path)
    if not file.count:
        raise FileUnreadable(f"{path}: there is nothing in it")
    return file
