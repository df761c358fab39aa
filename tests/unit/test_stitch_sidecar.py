"""The sidecar: its file, its camera centres, and which points it keeps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from stitch.errors import FileUnreadable
from stitch.identical import MAX_KEYS
from stitch.sidecar import MAX_BYTES, MAX_POINTS, Sidecar, points_that_fit, spread
from stitch.sim3 import Sim3
from stitch.thumbnails import MAX_PICTURES
from tests.stitch_world import Seabed, random_sim3

PICTURE_BYTES = 6000  # of 160 x 120 pixels of noise
PER_POINT = ("points", "descriptors", "track_length", "error_px", "rgb")


def test_round_trip_keeps_everything(tmp_path: Path) -> None:
    world = Seabed(0)
    sidecar = world.segment(0, 7, random_sim3(world.rng))
    sidecar = dataclasses.replace(sidecar, quality=sidecar.quality | {"mapper": "global", "n": 7})
    path = tmp_path / "registration.npz"
    sidecar.save(path)
    again = Sidecar.load(path)
    for field in dataclasses.fields(Sidecar):
        before, after = getattr(sidecar, field.name), getattr(again, field.name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
            assert np.array_equal(before, after, equal_nan=before.dtype.kind == "f"), field.name
        else:
            assert before == after
    assert [item.name for item in tmp_path.iterdir()] == ["registration.npz"]


@pytest.mark.parametrize(("length", "frames"), [(200.0, 500), (1000.0, 2500), (1600.0, 4000)])
def test_a_full_sidecar_is_under_a_megabyte(tmp_path: Path, length: float, frames: int) -> None:
    bare = Seabed(1, length=length, count=MAX_POINTS).segment(0, length, Sim3.identity())
    other = 4 * MAX_KEYS + PICTURE_BYTES * MAX_PICTURES
    count = points_that_fit(bare.keyframe_names, other)
    assert count >= (4500 if frames == 500 else 1500)
    keys = np.full(count, MAX_KEYS // count)
    sidecar = dataclasses.replace(
        bare,
        **{name: getattr(bare, name)[:count] for name in PER_POINT},
        key_counts=keys,
        keys=np.arange(keys.sum()),
        picture_rows=np.arange(MAX_PICTURES),
        picture_ends=PICTURE_BYTES * np.arange(1, MAX_PICTURES + 1),
        pictures=np.zeros(PICTURE_BYTES * MAX_PICTURES),
    )
    assert (len(sidecar.points), len(sidecar.keyframe_names)) == (count, frames)
    sidecar.save(tmp_path / "registration.npz")
    assert 900_000 < (tmp_path / "registration.npz").stat().st_size <= MAX_BYTES


def test_a_segment_of_few_frames_keeps_all_the_points_it_may() -> None:
    assert points_that_fit([f"f{k:06d}.jpg" for k in range(43)], 152_000) == MAX_POINTS
    assert points_that_fit(["f.jpg"] * 100_000, 0) >= 1000


def test_the_picture_nearest_to_a_frame_is_shown(tmp_path: Path) -> None:
    bare = Seabed(1).segment(0, 7, Sim3.identity())
    assert bare.thumbnail(0) is None
    sidecar = dataclasses.replace(
        bare, picture_rows=[0, 9], picture_ends=[3, 5], pictures=np.frombuffer(b"abcde", np.uint8)
    )
    sidecar.save(tmp_path / "registration.npz")
    loaded = Sidecar.load(tmp_path / "registration.npz")
    assert [loaded.thumbnail(row) for row in (0, 4, 6, 17)] == [
        *((0, b"abc"), (0, b"abc")),
        *((9, b"de"), (9, b"de")),
    ]


@pytest.mark.parametrize("damage", ["text", "cut", "npz", "missing"])
def test_other_files_end_in_one_clear_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "registration.npz"
    Seabed(2).segment(0, 7, Sim3.identity()).save(path)
    if damage == "text":
        path.write_text("nothing")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "npz":
        np.savez(path, a=np.zeros(3))
    else:
        path.unlink()
    with pytest.raises(FileUnreadable, match=r"registration\.npz: not a registration sidecar"):
        Sidecar.load(path)


def test_shapes_that_disagree_are_refused() -> None:
    sidecar = Seabed(3).segment(0, 7, Sim3.identity())
    with pytest.raises(ValueError, match="descriptors"):
        dataclasses.replace(sidecar, descriptors=sidecar.descriptors[:, :64])
    with pytest.raises(ValueError, match="gps"):
        dataclasses.replace(sidecar, gps=sidecar.gps[:-1])


def test_centres_are_where_the_cameras_were() -> None:
    world = Seabed(4)
    frame = random_sim3(world.rng)
    centres = frame.apply(world.segment(0, 7, frame).centres())
    expected = np.stack([np.arange(0, 7, 0.4)] * 3, axis=1) * [1, 0, 0] + [0, 0, 2.0]
    assert np.allclose(centres, expected)


def test_kept_points_cover_the_rims_too() -> None:
    """The middle is seen ten times as often; the ends must not be lost for it."""
    rng = np.random.default_rng(5)
    points = rng.uniform([0, -1, 0], [10, 1, 0.1], (20_000, 3))
    length = np.where(np.abs(points[:, 0] - 5) < 2, 30, 3)
    kept = spread(points, length, rng.random(20_000), 2000)
    assert len(kept) == len(set(kept.tolist())) == 2000
    counts, _ = np.histogram(points[kept, 0], bins=10, range=(0, 10))
    assert counts.min() > 100


def test_within_a_place_the_best_observed_points_are_kept() -> None:
    rng = np.random.default_rng(6)
    points = rng.uniform([0, 0, 0], [10, 2, 0.1], (20_000, 3))
    length = rng.integers(2, 20, 20_000)
    kept = spread(points, length, rng.random(20_000), 2000)
    assert length[kept].mean() > 15


def test_few_points_are_all_kept() -> None:
    points = np.zeros((5, 3))
    assert spread(points, np.ones(5), np.ones(5), 10).tolist() == [0, 1, 2, 3, 4]
    assert len(spread(points, np.ones(5), np.ones(5), 3)) == 3
