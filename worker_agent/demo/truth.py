"""The exact poses of a filmed segment, and the similarity that takes a reconstruction to them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp

Array = NDArray[np.float64]

_TRIALS = 300
_KEEP = 3.0  # robust standard deviations beyond which a camera does not count


class TruthError(ValueError):
    """A truth file or what is compared to it cannot be used; the text names it."""


@dataclass(frozen=True, slots=True)
class Truth:
    """`times_s` (N,), `centres` (N, 3) metres, `rotations` world_from_camera, of every frame."""

    name: str
    times_s: Array
    centres: Array
    rotations: Rotation

    def at(self, times_s: Array) -> tuple[Array, Rotation]:
        """Centres (K, 3) and rotations at these times of the clip, interpolated.

        A time up to one frame beyond the ends counts as the end. Raises TruthError farther out.
        """
        frame = float(np.diff(self.times_s).max())
        if not np.all((times_s >= self.times_s[0] - frame) & (times_s <= self.times_s[-1] + frame)):
            raise TruthError(
                f"{self.name}: keyframe times {np.min(times_s):.2f} to {np.max(times_s):.2f} s "
                f"are not within the clip's {self.times_s[0]:.2f} to {self.times_s[-1]:.2f} s"
            )
        inside = np.clip(times_s, self.times_s[0], self.times_s[-1])
        centres = np.stack(
            [np.interp(inside, self.times_s, self.centres[:, axis]) for axis in range(3)], axis=1
        )
        return centres, Slerp(self.times_s, self.rotations)(inside)


def load_truth(path: Path) -> Truth:
    """Reads what `film` wrote. Raises TruthError."""
    try:
        data = json.loads(path.read_text())
        frames = data["frames"]
        return Truth(
            name=str(data["segment"]),
            times_s=np.array([frame["t"] for frame in frames], float),
            centres=np.array([frame["C"] for frame in frames], float).reshape(-1, 3),
            rotations=Rotation.from_matrix(np.array([frame["R_wc"] for frame in frames], float)),
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise TruthError(f"{path}: not a truth file: {error}") from None


@dataclass(frozen=True, slots=True)
class Similarity:
    """x -> scale * rotation @ x + translation."""

    scale: float
    rotation: Array  # (3, 3)
    translation: Array  # (3,)

    def apply(self, points: Array) -> Array:
        """(N, 3) -> (N, 3)"""
        return np.asarray(self.scale * points @ self.rotation.T + self.translation)

    def after(self, first: Similarity) -> Similarity:
        """The similarity that does `first`, then this one."""
        return Similarity(
            self.scale * first.scale,
            self.rotation @ first.rotation,
            self.apply(first.translation[None])[0],
        )


IDENTITY = Similarity(1.0, np.eye(3), np.zeros(3))


def umeyama(source: Array, target: Array) -> Similarity:
    """Least squares similarity of matched points (N, 3) (Umeyama, PAMI 13(4), 1991)."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, singular, vt = np.linalg.svd(b.T @ a)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * signs) @ vt
    scale = float((singular * signs).sum() / max((a * a).sum(), 1e-300))
    return Similarity(scale, rotation, target.mean(0) - scale * rotation @ source.mean(0))


def align_centres(source: Array, target: Array) -> Similarity:
    """Similarity of camera centres (N >= 3), robust against up to half of them being wrong.

    Least median of squares over sampled triples, then least squares over the inliers (Rousseeuw
    and Leroy 1987). Raises TruthError for fewer than three.
    """
    if len(source) < 3:
        raise TruthError(f"{len(source)} cameras are too few to align; 3 are needed")
    rng = np.random.default_rng(0)
    best, best_residuals = IDENTITY, np.full(len(source), np.inf)
    for _ in range(_TRIALS):
        chosen = rng.choice(len(source), 3, replace=False)
        guess = umeyama(source[chosen], target[chosen])
        residuals = np.linalg.norm(guess.apply(source) - target, axis=1)
        if np.median(residuals) < np.median(best_residuals):
            best, best_residuals = guess, residuals
    for _ in range(2):
        inliers = _inliers(best_residuals)
        best = umeyama(source[inliers], target[inliers])
        best_residuals = np.linalg.norm(best.apply(source) - target, axis=1)
    return best


def align_cameras(
    centres: Array, rotations: Rotation, true_centres: Array, true_rotations: Rotation
) -> Similarity:
    """Similarity of one segment to its truth from centres and orientations (world_from_camera).

    A nearly straight track says nothing of the roll about it, so the rotation comes from the
    cameras' orientations, the scale from the distances between centres. Robust: medians, and
    cameras that disagree are left out. Raises TruthError for fewer than three.
    """
    if len(centres) < 3:
        raise TruthError(f"{len(centres)} cameras are too few to align; 3 are needed")
    relative = true_rotations * rotations.inv()
    rotation = relative.mean()
    for _ in range(3):
        rotation = relative[_inliers((rotation.inv() * relative).magnitude())].mean()
    matrix = rotation.as_matrix()
    i, j = np.triu_indices(len(centres), 1)
    apart = np.linalg.norm(centres[i] - centres[j], axis=1)
    true_apart = np.linalg.norm(true_centres[i] - true_centres[j], axis=1)
    scale = float(np.median(true_apart / np.maximum(apart, 1e-12)))
    shift = np.median(true_centres - scale * centres @ matrix.T, axis=0)
    return Similarity(scale, matrix, shift)


def _inliers(residuals: Array) -> NDArray[np.bool_]:
    """Within `_KEEP` robust deviations (1.4826 times the median each): at least half of them."""
    limit = max(_KEEP * 1.4826 * float(np.median(residuals)), 1e-9)
    return np.asarray(residuals <= limit)
