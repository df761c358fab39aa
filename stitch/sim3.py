"""Similarity transforms of 3D space, and what they do to points and to gaussians."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from stitch.gaussians import F32, REST_OF_DEGREE, SH_C0, Gaussians

F64 = npt.NDArray[np.float64]

# So few that OpenBLAS multiplies them on one thread: its others wait busily for the next product.
_ROWS = 1 << 10
_BAND1 = 0.4886025119029199
_BAND2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
_BAND3 = (
    *(0.5900435899266435, 2.890611442640554, 0.4570457994644658),
    *(0.3731763325901154, 1.445305721320277),
)


@dataclass(frozen=True, slots=True, eq=False)
class Sim3:
    """x -> scale * rotation @ x + translation; scale > 0, rotation (3,3) proper, both float64.

    Raises ValueError when it is none: wrong shapes, not finite, scale <= 0, a reflection.
    """

    scale: float
    rotation: F64
    translation: F64

    def __post_init__(self) -> None:
        rotation = np.array(self.rotation, dtype=np.float64)
        translation = np.array(self.translation, dtype=np.float64)
        object.__setattr__(self, "scale", float(self.scale))
        object.__setattr__(self, "rotation", rotation)
        object.__setattr__(self, "translation", translation)
        if rotation.shape != (3, 3) or translation.shape != (3,):
            raise ValueError(f"Sim3: shapes {rotation.shape} and {translation.shape}")
        if not (0.0 < self.scale < np.inf and np.isfinite(translation).all()):
            raise ValueError(f"Sim3: scale {self.scale}, translation {translation.tolist()}")
        if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-6 or np.linalg.det(rotation) < 0:
            raise ValueError(f"Sim3: not a rotation: {rotation.tolist()}")

    @classmethod
    def identity(cls) -> Sim3:
        return cls(1.0, np.eye(3), np.zeros(3))

    def __matmul__(self, first: Sim3) -> Sim3:
        """`first`, then this."""
        return Sim3(
            self.scale * first.scale,
            _orthonormal(self.rotation @ first.rotation),
            self.scale * self.rotation @ first.translation + self.translation,
        )

    def inverse(self) -> Sim3:
        back = self.rotation.T
        return Sim3(1.0 / self.scale, back, -(back @ self.translation) / self.scale)

    def apply(self, points: npt.NDArray[np.floating[Any]]) -> F64:
        """Points (N,3), computed in float64."""
        moved: F64 = points.astype(np.float64) @ (self.scale * self.rotation).T + self.translation
        return moved

    def quaternion(self) -> F64:
        """Rotation as a unit quaternion (4,), wxyz; w >= 0, so that the inverse's undoes it."""
        wxyz: F64 = np.roll(Rotation.from_matrix(self.rotation).as_quat(canonical=True), 1)
        return wxyz

    def angle_to(self, other: Sim3) -> float:
        """Angle between both rotations, in degrees."""
        chord = float(np.linalg.norm(self.rotation - other.rotation)) / np.sqrt(8.0)
        return float(np.degrees(2.0 * np.arcsin(min(1.0, chord))))


def umeyama(source: F64, target: F64, weights: F64 | None = None) -> Sim3:
    """Least-squares Sim3 that takes `source` (N,3) to `target` (N,3), rows weighted by `weights`
    (N,), all alike without.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
    1991. Raises ValueError when the points do not fix one: fewer than 3, or on one line.
    """
    if len(source) < 3:
        raise ValueError(f"{len(source)} points do not fix a Sim3")
    share = np.ones(len(source)) if weights is None else weights
    share = (share / share.sum())[:, None]
    mean_source, mean_target = (share * source).sum(axis=0), (share * target).sum(axis=0)
    a, b = source - mean_source, target - mean_target
    u, singular, vt = np.linalg.svd((share * b).T @ a)
    if singular[1] <= 1e-12 * singular[0]:
        raise ValueError("points on one line do not fix a Sim3")
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * sign) @ vt
    scale = float((singular * sign).sum() / (share * a * a).sum())
    return Sim3(scale, rotation, mean_target - scale * rotation @ mean_source)


def transform_gaussians(gaussians: Gaussians, sim3: Sim3) -> Gaussians:
    """The same scene seen from the new frame: a renderer moved along draws the same image.

    Exact for every field: means by the Sim3, log-scales by + ln(scale), quaternions by
    multiplication from the left, each spherical harmonic band by its own rotation.
    """
    each = gaussians.shN.shape[1]
    turn = np.zeros((each, each), np.float32)
    for band in range(1, gaussians.sh_degree + 1):
        rows = slice(REST_OF_DEGREE[band - 1], REST_OF_DEGREE[band])
        turn[rows, rows] = sh_rotation(sim3.rotation, band)
    quaternion = sim3.quaternion()
    moved = gaussians.copied()
    for start in range(0, len(gaussians), _ROWS):
        rows = slice(start, start + _ROWS)
        moved.means[rows] = sim3.apply(gaussians.means[rows])
        moved.quats[rows] = _multiply(quaternion, gaussians.quats[rows])
        for channel in range(3 if each else 0):
            moved.shN[rows, :, channel] = moved.shN[rows, :, channel] @ turn.T
    moved.scales[:] += np.float32(np.log(sim3.scale))
    return moved


def sh_basis(directions: F64, degree: int) -> F64:
    """Real spherical harmonics (M, (degree + 1)^2) at unit directions (M,3), INRIA's signs."""
    x, y, z = directions.T
    xx, yy, zz = x * x, y * y, z * z
    a2, b2, c2 = _BAND2
    a3, b3, c3, d3, e3 = _BAND3
    bands = [
        [np.full_like(x, SH_C0)],
        [-_BAND1 * y, _BAND1 * z, -_BAND1 * x],
        [a2 * x * y, -a2 * y * z, b2 * (2 * zz - xx - yy), -a2 * x * z, c2 * (xx - yy)],
        [
            -a3 * y * (3 * xx - yy),
            b3 * x * y * z,
            -c3 * y * (4 * zz - xx - yy),
            d3 * z * (2 * zz - 3 * xx - 3 * yy),
            -c3 * x * (4 * zz - xx - yy),
            e3 * z * (xx - yy),
            -a3 * x * (xx - 3 * yy),
        ],
    ]
    return np.stack([column for band in bands[: degree + 1] for column in band], axis=1)


def sh_rotation(rotation: F64, band: int) -> F64:
    """D (2 band + 1, same) with colour'(d) = colour(rotation^T d) for coefficients c' = D c.

    From Y(rotation^T p) = Y(p) D at more directions p than the band has coefficients, solved by
    the pseudo-inverse; exact because a rotation maps each band onto itself.
    """
    turned = sh_basis(_DIRECTIONS @ rotation, band)[:, band * band :]
    solved: F64 = _INVERSE[band] @ turned
    return solved


def _multiply(left: F64, right: F32) -> F32:
    w, x, y, z = left
    matrix = np.array([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])
    product: F32 = (right @ matrix.T).astype(np.float32)
    return product


def _orthonormal(rotation: F64) -> F64:
    """Nearest rotation: keeps long chains of products from drifting."""
    u, _, vt = np.linalg.svd(rotation)
    nearest: F64 = u @ vt
    return nearest


def _sphere(count: int) -> F64:
    """Unit directions (count,3) on a Fibonacci spiral."""
    index = np.arange(count) + 0.5
    z = 1.0 - 2.0 * index / count
    turn = index * np.pi * (3.0 - np.sqrt(5.0))
    ring = np.sqrt(1.0 - z * z)
    return np.stack([ring * np.cos(turn), ring * np.sin(turn), z], axis=1)


_DIRECTIONS = _sphere(64)
_INVERSE = tuple(np.linalg.pinv(sh_basis(_DIRECTIONS, b)[:, b * b :]) for b in range(4))
