"""A made-up seabed that two vehicles film, for bench/stitch.py: exact poses, real SIFT.

Three kinds: `reef` (heads and boulders, 1 m of relief), `sand` (ripples that repeat, 0.1 m) and
`flat` (millimetres); and ground that nobody should tell apart: `mat`, one pattern every 0.6 m under
dirt of its own. Frames are drawn with attenuation, vignette and noise; their keypoints are
put together to what a reconstruction leaves behind: points with mean descriptors, each in error
by its parallax, over ground that is bent by a few millimetres, in a frame of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, map_coordinates, zoom
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from stitch import sift
from stitch.sidecar import Sidecar
from stitch.sim3 import Sim3

KINDS = ("reef", "sand", "flat")
GROUNDS = (*KINDS, "mat")
LENGTH_M, WIDTH_M = 14.0, 8.0
_HEIGHT_M, _TONE_M, _CELL_M = 0.01, 0.005, 0.1  # grids: relief, brightness, footprints
_WIDE, _HIGH, _FOCAL = 640, 480, 512.0
_FEATURES = 2000
_SAME_POINT_M, _SAME_LOOK = 0.01, 0.75
_KEYPOINT_PX, _BASELINE_M = 0.5, 0.6
_BEND_M = 0.004
_MAT_M, _MAT_SEED = 0.6, 1  # one pattern for all seabeds of this kind
FLOATERS = 0.1

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def fractal(shape: tuple[int, int], slope: float, rng: np.random.Generator) -> F64:
    """Noise with a spectrum that falls with the power `slope`, of unit deviation."""
    across, along = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    frequency = np.hypot(across, along)
    frequency[0, 0] = 1.0
    spectrum = rng.normal(size=frequency.shape) + 1j * rng.normal(size=frequency.shape)
    spectrum *= frequency ** (-slope / 2)
    spectrum[0, 0] = 0.0
    field = np.fft.irfft2(spectrum, s=shape)
    return field / field.std()


class Seabed:
    """`heights` in metres and `tones` (0..1), on grids of their own over 14 x 8 m."""

    def __init__(self, kind: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        coarse = (round(WIDTH_M / _HEIGHT_M), round(LENGTH_M / _HEIGHT_M))
        fine = (round(WIDTH_M / _TONE_M), round(LENGTH_M / _TONE_M))
        if kind == "reef":
            heights = 0.12 * fractal(coarse, 3.2, rng) + 0.01 * fractal(coarse, 2.0, rng)
            _stones(heights, rng, 110, (0.08, 0.45), 0.7)
            tones = 0.5 + 0.11 * fractal(fine, 1.6, rng) + 0.06 * fractal(fine, 0.6, rng)
        elif kind == "sand":
            y, x = np.mgrid[0 : coarse[0], 0 : coarse[1]] * _HEIGHT_M
            phase = 0.8 * fractal(coarse, 4.0, rng)
            heights = 0.012 * np.sin(2 * np.pi * (0.94 * x + 0.34 * y) / 0.25 + phase)
            heights += 0.03 * fractal(coarse, 4.0, rng)
            _stones(heights, rng, 90, (0.015, 0.05), 0.6)
            slope = np.gradient(gaussian_filter(heights, 1.0), axis=1)
            tones = 0.55 - 8.0 * zoom(slope, 2, order=1) + 0.06 * fractal(fine, 1.3, rng)
        elif kind == "mat":
            side, pattern = round(_MAT_M / _TONE_M), np.random.default_rng(_MAT_SEED)
            tile = fractal((side, side), 1.2, pattern)
            repeats = [-(-length // side) for length in fine]
            tones = 0.5 + 0.08 * np.tile(tile, repeats)[: fine[0], : fine[1]]
            tones += 0.05 * fractal(fine, 1.2, rng)
            heights = 0.002 * fractal(coarse, 2.5, rng)
        else:
            heights = 0.002 * fractal(coarse, 2.5, rng)
            tones = 0.5 + 0.08 * fractal(fine, 1.2, rng) + 0.05 * fractal(fine, 0.4, rng)
        self.kind = kind
        self.heights: F64 = gaussian_filter(heights - heights.mean(), 1.0).astype(np.float32)
        self.tones: F64 = np.clip(tones, 0.02, 1.0).astype(np.float32)

    def height(self, x: F64, y: F64) -> F64:
        at = [y / _HEIGHT_M - 0.5, x / _HEIGHT_M - 0.5]
        return map_coordinates(self.heights, at, order=1, mode="nearest")

    def tone(self, x: F64, y: F64) -> F64:
        at = [y / _TONE_M - 0.5, x / _TONE_M - 0.5]
        return map_coordinates(self.tones, at, order=1, mode="nearest")


def _stones(
    heights: F64, rng: np.random.Generator, count: int, radii: tuple[float, float], flat: float
) -> None:
    rows, columns = heights.shape
    for _ in range(count):
        radius = rng.uniform(*radii) / _HEIGHT_M
        row, column = rng.uniform(0, rows), rng.uniform(0, columns)
        low = (max(0, int(row - radius)), max(0, int(column - radius)))
        high = (min(rows, int(row + radius) + 2), min(columns, int(column + radius) + 2))
        y, x = np.mgrid[low[0] : high[0], low[1] : high[1]]
        share = 1.0 - ((y - row) ** 2 + (x - column) ** 2) / radius**2
        part = heights[low[0] : high[0], low[1] : high[1]]
        base = heights[min(int(row), rows - 1), min(int(column), columns - 1)]
        dome = base + flat * radius * _HEIGHT_M * np.sqrt(np.maximum(share, 0.0))
        np.copyto(part, np.maximum(part, dome), where=share > 0)


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """One frame: `places` (M,3) of its keypoints in the world, `covers` on the footprint grid."""

    centre: F64
    axes: F64  # rows: camera axes in the world
    places: F64
    descriptors: npt.NDArray[np.uint8]
    covers: Mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Vehicle:
    altitude_m: float
    heading_deg: float
    gain: float
    noise: float


VEHICLES = (
    Vehicle(altitude_m=2.0, heading_deg=0.0, gain=1.25, noise=0.007),
    Vehicle(altitude_m=1.7, heading_deg=20.0, gain=0.95, noise=0.010),
)


def track(
    seabed: Seabed, vehicle: Vehicle, y: float, frames: int, seed: int, *, step: float = 0.3
) -> list[Shot]:
    """A leg through (7, y) at the vehicle's heading."""
    rng = np.random.default_rng(seed)
    turn = np.radians(vehicle.heading_deg)
    along = (np.arange(frames) - (frames - 1) / 2) * step
    shots = []
    for s in along:
        centre = np.array([LENGTH_M / 2 + s * np.cos(turn), y + s * np.sin(turn), 0.0])
        centre += rng.normal(size=3) * [0.02, 0.04, 0.05] + [0, 0, vehicle.altitude_m]
        angles = np.array([vehicle.heading_deg, 0, 0]) + rng.normal(size=3) * [2, 3, 3]
        body = Rotation.from_euler("ZYX", angles, degrees=True).as_matrix()
        shots.append(_shoot(seabed, vehicle, centre, np.diag([1.0, -1.0, -1.0]) @ body.T, rng))
    return shots


def _shoot(
    seabed: Seabed, vehicle: Vehicle, centre: F64, axes: F64, rng: np.random.Generator
) -> Shot:
    u, v = np.meshgrid(np.arange(_WIDE) + 0.5, np.arange(_HIGH) + 0.5)
    across, down = (u - _WIDE / 2) / _FOCAL, (v - _HIGH / 2) / _FOCAL
    x, y, far = _ground(seabed, centre, axes, across, down)
    light = np.exp(-0.1 * far) * (1.0 - 0.3 * (across**2 + down**2))
    tone = (seabed.tone(x, y) * light + 0.08) * vehicle.gain
    tone += rng.normal(size=tone.shape) * vehicle.noise
    image = (255.0 * np.clip(0.8 * tone, 0.0, 1.0)).astype(np.uint8)
    features = sift.extract(image, _FEATURES)
    place = features.place
    kx, ky, _ = _ground(
        seabed, centre, axes, (place.real - _WIDE / 2) / _FOCAL, (place.imag - _HIGH / 2) / _FOCAL
    )
    covers = np.zeros((round(WIDTH_M / _CELL_M), round(LENGTH_M / _CELL_M)), np.bool_)
    rows = np.clip((y[::12, ::12] / _CELL_M).astype(int), 0, covers.shape[0] - 1)
    columns = np.clip((x[::12, ::12] / _CELL_M).astype(int), 0, covers.shape[1] - 1)
    covers[rows, columns] = True
    places = np.stack([kx, ky, seabed.height(kx, ky)], axis=1)
    return Shot(centre, axes, places, features.descriptors, covers)


def _ground(seabed: Seabed, centre: F64, axes: F64, across: F64, down: F64) -> tuple[F64, F64, F64]:
    """Where rays meet the ground, by repeated steps to the height found below the last one."""
    ray = np.stack([across, down, np.ones_like(across)], axis=-1) @ axes
    height = np.zeros_like(across)
    for _ in range(5):
        far = (centre[2] - height) / -ray[..., 2]
        x, y = centre[0] + far * ray[..., 0], centre[1] + far * ray[..., 1]
        height = 0.3 * height + 0.7 * seabed.height(x, y)
    return x, y, far


@dataclass(frozen=True, slots=True, eq=False)
class Fragment:
    """`frame` takes the fragment's own frame to the world."""

    frame: Sim3
    sidecar: Sidecar
    covers: Mask


def overlap(one: Mask, other: Mask) -> float:
    """Common ground over that of the smaller."""
    return float((one & other).sum() / max(min(one.sum(), other.sum()), 1))


def covered(shots: Sequence[Shot], frames: int = 2) -> Mask:
    """Ground that so many frames saw; from one alone nothing is reconstructed."""
    return np.asarray(np.sum([shot.covers for shot in shots], axis=0) >= frames)


def random_frame(rng: np.random.Generator) -> Sim3:
    """Any rotation, scale 0.3 to 3."""
    scale = float(np.exp(rng.uniform(np.log(0.3), np.log(3.0))))
    rotation = Rotation.random(random_state=int(rng.integers(1 << 30))).as_matrix()
    return Sim3(scale, rotation, rng.normal(size=3) * 5.0)


def fragment(shots: Sequence[Shot], rng: np.random.Generator, bend_m: float = _BEND_M) -> Fragment:
    """The reconstruction of some frames; `bend_m`: by how much its ends are off its middle."""
    points, descriptors, length = _tracks(shots)
    points = _in_error(points, length, shots, rng, bend_m)
    strangers = int(FLOATERS * len(points))
    low, high = points.min(axis=0) - 0.3, points.max(axis=0) + 0.3
    points = np.concatenate([points, rng.uniform(low, high, (strangers, 3))])
    shuffled = rng.permuted(descriptors[rng.integers(0, len(descriptors), strangers)], axis=1)
    frame = random_frame(rng)
    back = frame.inverse()
    centres = np.array([shot.centre for shot in shots])
    cameras = Rotation.from_matrix(np.array([shot.axes @ frame.rotation for shot in shots]))
    depth = float(np.median([shot.centre[2] for shot in shots]))
    frames = len(shots)
    sidecar = Sidecar(
        points=back.apply(points),
        descriptors=np.concatenate([descriptors, shuffled]),
        track_length=np.concatenate([length, np.full(strangers, 2)]),
        error_px=np.full(len(points), _KEYPOINT_PX),
        rgb=np.zeros((len(points), 3)),
        keyframe_names=tuple(f"f{i:06d}.jpg" for i in range(frames)),
        keyframe_hashes=np.zeros(frames),
        keyframe_time_s=np.arange(frames) * 0.5,
        rotations=np.roll(cameras.as_quat(), 1, axis=1),
        translations=-cameras.apply(back.apply(centres)),
        gravity=np.full((frames, 3), np.nan),
        gps=np.full((frames, 3), np.nan),
        quality={"median_depth": depth / frame.scale},
    )
    return Fragment(frame, sidecar, covered(shots))


def _tracks(shots: Sequence[Shot]) -> tuple[F64, npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Points seen in two frames or more: places, mean descriptors, numbers of frames."""
    places = np.concatenate([shot.places for shot in shots])
    owner = np.repeat(np.arange(len(shots)), [len(shot.places) for shot in shots])
    look = np.concatenate([shot.descriptors for shot in shots]).astype(np.float32)
    look /= np.maximum(np.linalg.norm(look, axis=1, keepdims=True), 1.0)
    first, second = cKDTree(places).query_pairs(_SAME_POINT_M, output_type="ndarray").T
    same = (owner[first] != owner[second]) & (
        np.einsum("ij,ij->i", look[first], look[second]) > _SAME_LOOK
    )
    link = coo_matrix((np.ones(same.sum()), (first[same], second[same])), shape=[len(places)] * 2)
    count, group = connected_components(link, directed=False)
    length = np.bincount(np.unique(group * len(shots) + owner) // len(shots), minlength=count)
    size = np.bincount(group, minlength=count)
    mean = np.stack([np.bincount(group, column, count) / size for column in places.T], axis=1)
    total = np.zeros((count, 128), np.float32)
    np.add.at(total, group, look)
    total /= np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-9)
    kept = length >= 2
    stored = np.clip(np.round(total[kept] * 512.0), 0, 255).astype(np.uint8)
    return mean[kept], stored, length[kept]


def _in_error(
    points: F64,
    length: npt.NDArray[np.int64],
    shots: Sequence[Shot],
    rng: np.random.Generator,
    bend_m: float,
) -> F64:
    """Parallax leaves depth uncertain; the whole bends like a banana, as reconstructions do."""
    nearest = cKDTree([shot.centre for shot in shots]).query(points)[1]
    ray = points - np.array([shot.centre for shot in shots])[nearest]
    depth = np.linalg.norm(ray, axis=1)
    sigma = depth**2 / (_BASELINE_M * _FOCAL) * _KEYPOINT_PX / np.sqrt(length - 1.0)
    away = (sigma * rng.normal(size=len(points)))[:, None] * ray / depth[:, None]
    middle = points.mean(axis=0)
    share = (points - middle)[:, :2] / np.abs(points - middle)[:, :2].max()
    direction = rng.normal(size=2)
    direction /= np.linalg.norm(direction)
    along = share @ direction
    bent = points + away
    bent[:, 2] += bend_m * along**2 * rng.choice([-1.0, 1.0])
    bent[:, :2] += bend_m * 0.5 * (along**2)[:, None] * direction
    return bent


def cloud(
    seabed: Seabed, covers: Mask, frame: Sim3, count: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Points (N,3) in the fragment's own frame and grey values (N,), with noise and floaters."""
    row, column = np.nonzero(covers)
    chosen = rng.integers(0, len(row), count)
    x = (column[chosen] + rng.random(count)) * _CELL_M
    y = (row[chosen] + rng.random(count)) * _CELL_M
    points = np.stack([x, y, seabed.height(x, y)], axis=1) + rng.normal(size=(count, 3)) * 0.006
    tone = seabed.tone(x, y) * rng.uniform(0.7, 1.2) + rng.normal(size=count) * 0.02
    strangers = int(FLOATERS * count)
    low, high = points.min(axis=0) - 0.5, points.max(axis=0) + 0.5
    points = np.concatenate([points, rng.uniform(low, high, (strangers, 3))])
    tone = np.concatenate([tone, rng.random(strangers)])
    return frame.inverse().apply(points).astype(np.float32), tone.astype(np.float32)
