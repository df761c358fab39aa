"""Clouds without a sidecar, registered by what a camera above them would see."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from stitch import sift
from stitch.clouds import solid_points
from stitch.errors import FileUnreadable
from stitch.gaussians import SH_C0, Gaussians
from stitch.pairs import Known, register_pair
from stitch.ply import write_ply
from stitch.raster import View, register_views, view
from stitch.register import match
from stitch.score import Thresholds, judge
from stitch.sim3 import Sim3
from tests.stitch_world import random_gaussians, random_sim3

THRESHOLDS = Thresholds(min_inliers=12, min_share=0.2, min_hull_share=0.1)
RATIO = 0.85


@pytest.fixture(autouse=True)
def quiet() -> None:
    pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value


class Ground:
    """10 x 4 m of noise at 1 cm, with relief of a few centimetres."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        noise = sum(gaussian_filter(self.rng.normal(size=(400, 1000)), s) * s for s in (1.5, 4, 12))
        self.tones = 0.5 + 0.15 * noise / noise.std()
        relief = gaussian_filter(self.rng.normal(size=(400, 1000)), 25)
        self.heights = 0.04 * relief / relief.std()

    def cloud(self, start: float, end: float, frame: Sim3) -> tuple[np.ndarray, np.ndarray]:
        """Points of start <= x < end in a frame of their own and their greys; 10 % floaters."""
        count = int(9000 * (end - start))
        x, y = self.rng.uniform(start, end, count), self.rng.uniform(0, 4, count)
        at = [100.0 * y - 0.5, 100.0 * x - 0.5]
        height, tone = (
            map_coordinates(grid, at, order=1, mode="nearest")
            for grid in (self.heights, self.tones)
        )
        points = np.stack([x, y, height], axis=1) + self.rng.normal(size=(count, 3)) * 0.004
        astray = self.rng.random(count) < 0.1
        points[astray] += self.rng.uniform(-1, 1, (int(astray.sum()), 3))
        return frame.inverse().apply(points).astype(np.float32), tone.astype(np.float32)


@functools.cache
def pair(seed: int) -> tuple[View, View, Sim3]:
    """Two views with 2 of 6 m in common, and what takes the second to the first."""
    ground = Ground(seed)
    one, other = random_sim3(ground.rng), random_sim3(ground.rng)
    first = view(*ground.cloud(0.0, 6.0, one))
    return first, view(*ground.cloud(4.0, 10.0, other)), one.inverse() @ other


@pytest.mark.parametrize("seed", range(3))
def test_two_clouds_are_placed_whichever_way_they_lie(seed: int) -> None:
    first, second, truth = pair(seed)
    found = register_views(1, second, 0, first, RATIO)
    assert judge(found, THRESHOLDS).accepted, found
    assert found.sim3 is not None
    assert found.sim3.angle_to(truth) < 1.0
    assert found.sim3.scale / truth.scale == pytest.approx(1.0, abs=0.01)
    places = second.footprint
    error = np.linalg.norm(found.sim3.apply(places) - truth.apply(places), axis=1)
    assert np.median(error) < 0.01 * first.extent


def test_what_looks_alike_elsewhere_is_found_where_the_rest_puts_it() -> None:
    """Nine of ten keypoints have a double far away, which the ratio test cannot tell from them."""
    first, second, truth = pair(0)
    plain = register_views(1, second, 0, first, RATIO)
    seen = first.features
    doubled = np.arange(len(seen)) % 10 > 0
    twice = sift.Features(
        np.concatenate([seen.place, seen.place[doubled] + 5000.0]),
        np.concatenate([seen.turn, seen.turn[doubled]]),
        np.concatenate([seen.descriptors, seen.descriptors[doubled]]),
    )
    away = first.places[doubled] + 5.0 * first.extent
    unsure = dataclasses.replace(first, features=twice, places=np.concatenate([first.places, away]))
    found = register_views(1, second, 0, unsure, RATIO)
    assert found.inliers < plain.inliers / 4
    assert found.far_error < 1.2 * plain.far_error
    assert found.sim3 is not None
    assert found.sim3.angle_to(truth) < 0.1


def test_clouds_of_other_ground_are_refused() -> None:
    views = [view(*Ground(100 + seed).cloud(0, 6, Sim3.identity())) for seed in range(4)]
    for k, one in enumerate(views):
        for other in views[:k]:
            assert not judge(register_views(1, one, 0, other, RATIO), THRESHOLDS).accepted


def test_a_cloud_of_nothing_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="3 points are too few"):
        view(np.zeros((3, 3), np.float32), np.zeros(3, np.float32))


def test_a_mirrored_picture_has_the_mirrored_descriptors() -> None:
    tones = Ground(5).tones[:200, :300]
    image = np.clip(255 * tones, 0, 255).astype(np.uint8)
    features = sift.extract(image, 500).mirrored()
    mirrored = sift.extract(image[::-1], 500)
    pairs = match(features.descriptors, mirrored.descriptors, RATIO)
    assert len(pairs) > 0.9 * len(mirrored)
    moved = mirrored.place[pairs[:, 1]] - features.place[pairs[:, 0]]
    assert np.median(np.abs(moved - 200j)) < 0.2
    turned = mirrored.turn[pairs[:, 1]] / features.turn[pairs[:, 0]]
    assert np.median(np.abs(turned - 1.0)) < 0.05


def test_faint_and_lost_gaussians_are_not_drawn(tmp_path: Path) -> None:
    made = random_gaussians(np.random.default_rng(0), 400, 0)
    means, opacities = made.means.copy(), np.full(400, 2.0)
    opacities[:100] = -4.0
    means[100:110] = np.nan
    sh0 = np.full((400, 3), 0.3 / SH_C0)
    path = tmp_path / "g.ply"
    write_ply(path, Gaussians(means, made.scales, made.quats, opacities, sh0, made.shN))
    points, grey = solid_points(path, 1000)
    assert np.array_equal(points, means[110:])
    assert grey == pytest.approx(0.8)


def write_plain(path: Path, points: np.ndarray, grey: np.ndarray, *, faces: bytes = b"") -> None:
    """Doubles and bytes, as scanners leave them, with whatever follows the vertices."""
    row = np.dtype([(a, "<f8") for a in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")])
    table = np.zeros(len(points), row)
    for axis, column in zip("xyz", points.T, strict=True):
        table[axis] = column
    for colour in ("red", "green", "blue"):
        table[colour] = np.clip(255 * grey, 0, 255)
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
    lines += [f"property double {axis}" for axis in "xyz"]
    lines += [f"property uchar {colour}" for colour in ("red", "green", "blue")]
    lines += ["element face 1", "property list uchar int vertex_indices"] if faces else []
    header = "".join(f"{line}\n" for line in [*lines, "end_header"]).encode()
    path.write_bytes(header + table.tobytes() + faces)


def test_a_plain_cloud_is_placed_on_gaussians(tmp_path: Path) -> None:
    ground = Ground(7)
    one, other = random_sim3(ground.rng), random_sim3(ground.rng)
    plain, splats = tmp_path / "plain.ply", tmp_path / "splats.ply"
    write_plain(plain, *ground.cloud(0.0, 6.0, one), faces=b"\x03" + bytes(12))
    points, grey = ground.cloud(4.0, 10.0, other)
    made = random_gaussians(ground.rng, len(points), 0)
    sh0 = np.repeat((grey[:, None] - 0.5) / SH_C0, 3, axis=1)
    solid = np.full(len(points), 2.0)
    write_ply(splats, Gaussians(points, made.scales, made.quats, solid, sh0, made.shN))
    found = register_pair(1, Known(splats, None), 0, Known(plain, None), RATIO)
    assert judge(found, THRESHOLDS).accepted, found
    assert found.sim3 is not None
    truth = one.inverse() @ other
    assert found.sim3.angle_to(truth) < 1.0
    assert found.sim3.scale / truth.scale == pytest.approx(1.0, abs=0.01)


def test_a_large_cloud_is_read_in_part(tmp_path: Path) -> None:
    count = 100_001
    points = np.arange(count)[:, None] * np.array([[1.0, 0.0, -1.0]])
    write_plain(tmp_path / "p.ply", points, np.full(count, 0.4))
    some, grey = solid_points(tmp_path / "p.ply", 1000)
    assert np.array_equal(some, points[::101])
    assert grey == pytest.approx(0.4)


def test_clouds_that_cannot_be_drawn_say_so(tmp_path: Path) -> None:
    path = tmp_path / "p.ply"
    write_plain(path, np.zeros((5, 3)), np.zeros(5))
    with pytest.raises(FileUnreadable, match="5 points are too few"):
        Known(path, None).view()
    path.write_bytes(path.read_bytes().replace(b"blue", b"blub"))
    with pytest.raises(FileUnreadable, match="neither gaussians nor coloured points"):
        Known(path, None).view()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FileUnreadable, match="cut short"):
        Known(path, None).view()
