"""3D gaussians as a structure of arrays, in the parametrisation of 3DGS training."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stitch.durable import replacing
from stitch.errors import FileUnreadable

F32 = npt.NDArray[np.float32]

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

    Raises ValueError for shapes that do not agree.
    """

    means: F32
    scales: F32
    quats: F32
    opacities: F32
    sh0: F32
    shN: F32

    def __post_init__(self) -> None:
        for item in fields(self):
            array = np.asarray(getattr(self, item.name), dtype=np.float32)
            object.__setattr__(self, item.name, array)
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
        return Gaussians(*(getattr(self, item.name)[index] for item in fields(self)))

    def save_npz(self, path: Path) -> None:
        """Atomic and durable, uncompressed."""
        with replacing(path) as stream:
            np.savez(stream, **{item.name: getattr(self, item.name) for item in fields(self)})

    @classmethod
    def load_npz(cls, path: Path) -> Gaussians:
        """Inverse of `save_npz`. Raises FileUnreadable."""
        try:
            with np.load(path, allow_pickle=False) as data:
                return cls(*(data[item.name] for item in fields(cls)))
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise FileUnreadable(f"{path}: not a gaussians file: {error}") from None
