"""A made-up seabed of 3D points with descriptors, and reconstructions of parts of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from stitch.gaussians import REST_OF_DEGREE, Gaussians
from stitch.register import Edge
from stitch.sidecar import Sidecar
from stitch.sim3 import Sim3
from stitch.territory import Member

DEPTH_M = 2.0
Array = npt.NDArray[np.float64]


def random_sim3(rng: np.random.Generator) -> Sim3:
    scale = float(np.exp(rng.uniform(np.log(0.3), np.log(3.0))))
    rotation = Rotation.random(random_state=int(rng.integers(1 << 30))).as_matrix()
    return Sim3(scale, rotation, rng.normal(size=3) * 5.0)


def random_gaussians(rng: np.random.Generator, count: int, degree: int) -> Gaussians:
    return Gaussians(
        means=rng.normal(size=(count, 3)),
        scales=rng.normal(size=(count, 3)) - 4.0,
        quats=rng.normal(size=(count, 4)),
        opacities=rng.normal(size=count),
        sh0=rng.normal(size=(count, 3)),
        shN=rng.normal(size=(count, REST_OF_DEGREE[degree], 3)),
    )


class Seabed:
    """Points (N,3) in metres over `length` x 3 m, gently rough, with SIFT-like descriptors."""

    def __init__(self, seed: int, length: float = 12.0, count: int = 2400) -> None:
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.points: Array = self.rng.uniform([0, -1.5, 0], [length, 1.5, 0.15], size=(count, 3))
        self.descriptors: Array = self.rng.gamma(0.6, 1.0, size=(count, 128))

    def segment(
        self, start: float, end: float, frame: Sim3, *, wrong: float = 0.0, bend_m: float = 0.0
    ) -> Sidecar:
        """A reconstruction of start <= x < end whose own frame `frame` takes to the world.

        A share `wrong` of its points is somewhere else than the world's point of the same look.
        `bend_m`: its far end is reconstructed that much too high, cameras and all.
        """
        inside = np.flatnonzero((self.points[:, 0] >= start) & (self.points[:, 0] < end))
        count = len(inside)
        points = self.points[inside] + self.rng.normal(size=(count, 3)) * 0.004
        moved = self.rng.random(count) < wrong
        points[moved] = self.rng.uniform(
            points.min(axis=0), points.max(axis=0), (int(moved.sum()), 3)
        )
        look = self.descriptors[inside] * self.rng.uniform(0.85, 1.15, size=(count, 128))
        look /= np.linalg.norm(look, axis=1, keepdims=True)
        centres = np.stack([np.arange(start, end, 0.4)] * 3, axis=1) * [1, 0, 0] + [0, 0, DEPTH_M]
        down = Rotation.from_euler("x", 180, degrees=True)
        for bent in (points, centres):
            bent[:, 2] += bend_m * ((bent[:, 0] - start) / (end - start)) ** 2
        back = frame.inverse()
        camera = down * Rotation.from_matrix(frame.rotation)
        frames = len(centres)
        return Sidecar(
            points=back.apply(points),
            descriptors=np.clip(np.round(look * 512.0), 0, 255),
            track_length=self.rng.integers(2, 12, count),
            error_px=self.rng.uniform(0.1, 0.9, count),
            rgb=self.rng.integers(0, 256, (count, 3)),
            keyframe_names=tuple(f"f{i:06d}.jpg" for i in range(frames)),
            keyframe_hashes=1 + self.seed * 100_000 + np.round(centres[:, 0] * 1000.0),
            keyframe_time_s=np.arange(frames) * 0.5,
            rotations=np.tile(np.roll(camera.as_quat(), 1), (frames, 1)),
            translations=-camera.apply(back.apply(centres)),
            gravity=np.tile([0.0, 0.0, 1.0], (frames, 1)),
            gps=np.full((frames, 3), np.nan),
            quality={"median_depth": DEPTH_M / frame.scale},
        )


def ground_tones(rng: np.random.Generator) -> Array:
    """Shades of 9 x 3 m of ground, a hundred to the metre."""
    noise = sum(gaussian_filter(rng.normal(size=(300, 900)), s) * s for s in (1.5, 4, 12))
    tones: Array = np.clip(0.5 + 0.15 * noise / np.std(noise), 0, 1)
    return tones


def seen_ground(
    rng: np.random.Generator, tones: Array, start: float, count: int = 50_000
) -> tuple[Array, Array]:
    """Points of 6 m of it from `start` on, in metres, and their shades."""
    x, y = rng.uniform(start, start + 6, count), rng.uniform(0, 3, count)
    shades: Array = map_coordinates(tones, [100.0 * y, 100.0 * x], order=1, mode="nearest")
    return np.stack([x, y, 0.03 * np.sin(x)], axis=1), shades


def write_points(path: Path, points: Array, shades: Array) -> Path:
    """A plain PLY of coloured points."""
    columns = [(n, "<f4") for n in "xyz"] + [(n, "u1") for n in ("red", "green", "blue")]
    table = np.zeros(len(points), columns)
    for axis, name in enumerate("xyz"):
        table[name] = points[:, axis]
    for name in ("red", "green", "blue"):
        table[name] = np.round(255 * shades)
    head = [f"element vertex {len(points)}", *(f"property float {n}" for n in "xyz")]
    head += [f"property uchar {n}" for n in ("red", "green", "blue")]
    lines = ["ply", "format binary_little_endian 1.0", *head, "end_header", ""]
    path.write_bytes("\n".join(lines).encode() + table.tobytes())
    return path


def edge(source: int, target: int, sim3: Sim3, inliers: int = 100) -> Edge:
    return Edge(source, target, inliers * 2, inliers, 0.5, 0.004, sim3)


def noisy(rng: np.random.Generator, sim3: Sim3, size: float) -> Sim3:
    """`sim3` as a registration finds it of a member of `size`: 0.15 degrees, 0.3 % off."""
    jitter = Sim3(
        float(np.exp(rng.normal() * 0.003)),
        Rotation.from_rotvec(rng.normal(size=3) * np.radians(0.15)).as_matrix(),
        rng.normal(size=3) * 0.003 * size,
    )
    return sim3 @ jitter


def rotation(sidecar: Sidecar) -> Rotation:
    return Rotation.from_quat(np.roll(sidecar.rotations, -1, axis=1))


def flown(member: Member, y: float, height: float) -> Member:
    """The same, seen from another track."""
    centres = member.pose.apply(member.sidecar.centres()) * [1, 0, 0] + [0, y, height]
    turn = rotation(member.sidecar)
    moved = -turn.apply(member.pose.inverse().apply(centres))
    return dataclasses.replace(
        member, sidecar=dataclasses.replace(member.sidecar, translations=moved)
    )
