"""3D gaussians as a structure of arrays, in the parametrisation of 3DGS training."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stitch.durable import replacing
from stitch.errors import FileUnreadable

F32 = npt.NDArray[np.float32]

_ARRAYS = ("means", "scales", "quats", "opacities", "sh0", "shN")

SH_C0 = 0.28209479177387814
"""Zeroth real spherical harmonic, 1 / (2 sqrt(pi)): colour = 0.5 + SH_C0 * sh0 + higher bands."""

REST_OF_DEGREE = (0, 3, 8, 15)
"""Number of coefficients above band 0, by spherical harmonic degree."""


@dataclass(frozen=True, slots=True, eq=False)
class Gaussians:
    """N gaussians, all arrays float32; other dtypes are converted, other shapes refused. Arrays may
    be views of a table that a file was read into.

    means (N,3) positions; scales (N,3) natural logarithm of the standard deviations, same unit;
    quats (N,4) wxyz, rotation of the principal axes, not necessarily of unit length;
    opacities (N,) logit; sh0 (N,3) and shN (N,K,3), K in {0, 3, 8, 15}: spherical harmonics per
    RGB channel in the sign convention of the INRIA code (band 1 is -y, z, -x).
    table (N,17+3K): the rows of a PLY that all arrays are views of, where they lie so; what is done
    to whole rows takes a fifth of the time then.

    Raises ValueError for shapes that do not agree.
    """

    means: F32
    scales: F32
    quats: F32
    opacities: F32
    sh0: F32
    shN: F32
    table: F32 | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        for name in _ARRAYS:
            array = np.asarray(getattr(self, name), dtype=np.float32)
            object.__setattr__(self, name, array)
        count = len(self.means)
        rest = self.shN.shape[1] if self.shN.ndim == 3 else -1
        wanted = {
            "means": (count, 3),
            "scales": (count, 3),
            "quats": (count, 4),
            "opacities": (count,),
            "sh0": (count, 3),
            "shN": (count, rest if rest in REST_OF_DEGREE else "0|3|8|15", 3),
        }
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"gaussians: {name} is {getattr(self, name).shape}, not {shape}")

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        return REST_OF_DEGREE.index(self.shN.shape[1])

    def select(self, index: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Gaussians:
        """The gaussians of a mask (N,) or of row numbers, in that order."""
        if self.table is not None:
            return Gaussians.of_table(self.table[index])
        return Gaussians(*(getattr(self, name)[index] for name in _ARRAYS))

    def copied(self) -> Gaussians:
        """The same in a table of their own, without normals."""
        if self.table is not None:
            table = self.table.copy()
            table[:, 3:6] = 0.0
            return Gaussians.of_table(table)
        made = Gaussians.of_table(np.zeros((len(self), 17 + 3 * self.shN.shape[1]), np.float32))
        made.put(0, self)
        return made

    def put(self, first: int, part: Gaussians) -> None:
        """`part`, of the same degree, in place of those from number `first` on."""
        for name in _ARRAYS:
            getattr(self, name)[first : first + len(part)] = getattr(part, name)

    @classmethod
    def empty(cls, count: int, sh_degree: int) -> Gaussians:
        """Arrays of their own, to be filled by `put`."""
        shapes = ((3,), (3,), (4,), (), (3,), (REST_OF_DEGREE[sh_degree], 3))
        return cls(*(np.empty((count, *shape), np.float32) for shape in shapes))

    @classmethod
    def of_table(cls, table: F32) -> Gaussians:
        """Views of rows (N,17+3K) as a PLY has them (stitch.ply): position, normal, sh0, shN by
        channel, opacity, scales, quaternion."""
        rest = table.shape[1] - 17
        made = cls(
            means=table[:, 0:3],
            scales=table[:, 10 + rest : 13 + rest],
            quats=table[:, 13 + rest :],
            opacities=table[:, 9 + rest],
            sh0=table[:, 6:9],
            shN=table[:, 9 : 9 + rest].reshape(len(table), 3, rest // 3).transpose(0, 2, 1),
        )
        object.__setattr__(made, "table", table)
        return made

    def save_npz(self, path: Path) -> None:
        """Atomic and durable, uncompressed."""
        with replacing(path) as stream:
            np.savez(stream, **{name: getattr(self, name) for name in _ARRAYS})

    @classmethod
    def load_npz(cls, path: Path) -> Gaussians:
        """Inverse of `save_npz`. Raises FileUnreadable."""
        try:
            with np.load(path, allow_pickle=False) as data:
                return cls(*(data[name] for name in _ARRAYS))
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise FileUnreadable(f"{path}: not a gaussians file: {error}") from None
