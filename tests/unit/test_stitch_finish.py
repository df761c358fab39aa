"""What is done to the gaussians of a scene beside putting them in their places."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from stitch.above import above
from stitch.aspects import Shades, aspects
from stitch.cloud_file import CloudFile, open_member
from stitch.errors import FileUnreadable
from stitch.floaters import Floaters
from stitch.gaussians import SH_C0, Gaussians
from stitch.harmonise import tints
from stitch.merge import Finish, merge_gaussians
from stitch.ply import read_header, read_ply, write_ply
from stitch.seams import Tally
from stitch.sim3 import Sim3, sh_basis, transform_gaussians
from stitch.splat import ROW, weight_of
from stitch.standin import STAND_IN
from stitch.territory import Member
from stitch.tiles import write_tiles
from tests.stitch_world import Seabed, flown, random_gaussians, random_sim3

RNG = np.random.default_rng(0)


def seabed(count: int = 60_000) -> np.ndarray:
    """7 x 3 m, a ripple of 10 cm, with a coral head 60 cm high."""
    places = RNG.uniform([0, -1.5, 0], [7, 1.5, 0], (count, 3))
    places[:, 2] = 0.05 * np.sin(3 * places[:, 0]) + RNG.normal(size=count) * 0.01
    head = RNG.normal(size=(2000, 3))
    head = 0.3 * head / np.linalg.norm(head, axis=1, keepdims=True) + [3, 0, 0.3]
    return np.concatenate([places, head])


def cameras() -> np.ndarray:
    return np.stack([np.arange(0, 7, 0.3)] * 3, axis=1) * [1, 0, 0] + [0, 0, 2.0]


def floating(places: np.ndarray) -> np.ndarray:
    found = Floaters(cameras(), 2.0)
    for block in np.array_split(places, 7):
        found.add(block)
    found.close()
    return found.among(places)


def test_what_hangs_in_the_water_floats_and_the_ground_does_not() -> None:
    ground = seabed()
    drifting = RNG.uniform([0, -1.5, 0.9], [7, 1.5, 1.7], (60, 3))
    before_lens = cameras()[4] + RNG.normal(size=(50, 3)) * 0.02
    lost = np.array([[np.nan, 0, 0], [1e30, 0, 0], [40.0, 9, 9]])
    floats = floating(np.concatenate([ground, drifting, before_lens, lost]))
    assert floats[: len(ground)].mean() < 0.001
    assert floats[len(ground) : len(ground) + 60].mean() > 0.95
    assert floats[len(ground) + 60 : len(ground) + 110].mean() > 0.9
    assert floats[-3:].all()


def test_a_thin_cloud_is_no_floater_by_itself() -> None:
    assert not floating(seabed(1500)).any()


def shade(colour: np.ndarray) -> np.ndarray:
    return ((colour - 0.5) / SH_C0).astype(np.float32)


def test_members_of_other_exposure_and_water_get_one_colour() -> None:
    """The second camera saw the same ground darker and bluer."""
    patches = RNG.uniform(0.2, 0.8, (40, 3))
    columns = RNG.integers(0, 40, (3, 30_000))
    tallies, colours = [], []
    for number, (gain, offset) in enumerate([(1.0, 0.0), (0.7, [0.0, 0.0, 0.1])]):
        places = np.stack([columns[number] * 0.1 + 0.05] * 3, axis=1) * [1, 0, 0] + 0.01
        colour = patches[columns[number]] * gain + offset
        tallies.append(Tally(0.1))
        tallies[-1].add(places, shade(colour), np.ones(len(places), np.bool_))
        colours.append((columns[number], colour))
    one, other = tints(tallies)
    seen = [
        np.array([tint.gain * colour[column == k].mean(axis=0) + tint.offset for k in range(40)])
        for tint, (column, colour) in zip((one, other), colours, strict=True)
    ]
    assert np.abs(seen[0] - seen[1]).max() < 0.01
    assert np.allclose(one.gain * other.gain, 1.0, atol=1e-3)  # both meet in the middle


def test_colours_of_members_that_never_meet_stay_as_they_are() -> None:
    tallies = [Tally(0.1), Tally(0.1)]
    for number, tally in enumerate(tallies):
        places = RNG.uniform(0, 2, (5000, 3)) + 10.0 * number
        tally.add(places, np.zeros((5000, 3), np.float32), np.ones(5000, np.bool_))
    for tint in tints(tallies):
        assert np.allclose(tint.gain, 1.0) and np.allclose(tint.offset, 0.0)


def members(tmp_path: Path) -> tuple[list[Member], list[Path]]:
    """Two that overlap; the second is darker. Each has floaters."""
    world = Seabed(0, count=3000)
    made, paths = [], []
    for number, (start, end) in enumerate([(0.0, 7.0), (4.0, 11.0)]):
        pose = random_sim3(world.rng)
        made.append(Member(f"S{number}", pose, world.segment(start, end, pose)))
        places = RNG.uniform([start, -1.4, 0.05], [end, 1.4, 0.09], (40_000, 3))
        places[:30, 2] = np.linspace(0.8, 1.6, 30)
        look = 0.5 + 0.25 * np.sin(places[:, :1] * [3.0, 5.0, 7.0])
        any_ = random_gaussians(RNG, len(places), 1)
        own = dataclasses.replace(any_, means=places, sh0=shade(look * (1.0 - 0.3 * number)))
        paths.append(tmp_path / f"S{number}.ply")
        write_ply(paths[-1], transform_gaussians(own, pose.inverse()))
    return made, paths


def test_a_finished_scene_has_no_floaters_one_colour_and_says_whose_each_gaussian_is(
    tmp_path: Path,
) -> None:
    made, paths = members(tmp_path)
    scene = tmp_path / "scene.ply"
    plain = merge_gaussians(made, paths, scene, finish=Finish(floaters=False))
    merged = merge_gaussians(made, paths, scene, finish=Finish(harmonise=True, label=True))
    assert all(25 <= count <= 80 for count in merged.floating)
    assert read_ply(scene).means[:, 2].max() < 0.3 < 0.8
    row, count, offset = read_header(scene)
    table = np.fromfile(scene, row, count, offset=offset)
    assert [int((table["segment"] == k).sum()) for k in (0, 1)] == list(merged.kept)
    assert plain.tints == () and plain.floating == (0, 0)
    assert merged.tints[1].gain.mean() / merged.tints[0].gain.mean() == pytest.approx(1 / 0.7, 0.05)
    border = np.abs(table["x"] - 5.5) < 0.05
    colours = [0.5 + SH_C0 * table["f_dc_0"][border & (table["segment"] == k)] for k in (0, 1)]
    if all(len(colour) for colour in colours):
        assert abs(colours[0].mean() - colours[1].mean()) < 0.05


def test_ground_looks_to_each_ones_cameras_as_that_one_saw_it(tmp_path: Path) -> None:
    """The second passed on the other side, and saw all darker."""
    made, paths = members(tmp_path)
    made = [flown(member, y, 2.0) for member, y in zip(made, (1.5, -1.5), strict=True)]
    path = tmp_path / "scene.ply"
    plain = merge_gaussians(made, paths, path, finish=Finish(aspects=False))
    before = read_ply(path)
    sided = merge_gaussians(made, paths, path, finish=Finish(aspects=True))
    after = read_ply(path)
    assert sided.kept == plain.kept and np.array_equal(after.means, before.means)
    alone = before.means[:, 0] < 3.5
    assert np.array_equal(after.sh0[alone], before.sh0[alone])
    assert np.array_equal(after.shN[alone], before.shN[alone])
    shared = np.flatnonzero((before.means[:, 0] > 4.5) & (before.means[:, 0] < 6.5))
    first = shared[shared < plain.kept[0]]

    def seen(scene: Gaussians, which: np.ndarray, y: float) -> float:
        """Mean brightness from right beside, on that side."""
        way = scene.means[which].astype(float) * [0, 1, 1] - [0, y, 2.0]
        way /= np.linalg.norm(way, axis=1, keepdims=True)
        every = np.concatenate([scene.sh0[which, None], scene.shN[which]], axis=1)
        return float(0.5 + np.einsum("nk,nkc->nc", sh_basis(way, 1), every).mean())

    assert len(first) > 1000
    assert seen(after, first, 1.5) == pytest.approx(seen(before, first, 1.5), abs=0.02)
    assert seen(before, first, -1.5) == pytest.approx(0.5, abs=0.03)
    assert seen(after, first, -1.5) == pytest.approx(0.35, abs=0.04)


def test_what_is_of_one_colour_already_looks_the_same_from_everywhere(tmp_path: Path) -> None:
    made, paths = members(tmp_path)
    made = [flown(member, y, 2.0) for member, y in zip(made, (1.5, -1.5), strict=True)]
    merged = merge_gaussians(made, paths, tmp_path / "scene.ply", finish=Finish(harmonise=True))
    for aspect in merged.aspects:
        assert aspect.moves and np.abs(SH_C0 * aspect.steps.mean(axis=0)[0]).max() < 0.01


def shades(look: np.ndarray, low: float, count: int, unit: float = 1.0) -> Shades:
    """`look` (4,3) on the ground of a cell from x = `low` on; the scene in units of `unit`."""
    any_ = random_gaussians(RNG, count, 1)
    same = np.zeros((count, 3), np.float32)
    one = dataclasses.replace(
        any_, sh0=same + look[0], shN=np.tile(look[1:], (count, 1, 1)),
        scales=same - np.log(unit),
        opacities=same[:, 0],
    )  # fmt: skip
    made = Shades(1.0, Sim3(unit, np.eye(3), np.zeros(3)))
    made.add(RNG.uniform([low, 0, 0], [1, 1, 1], (count, 3)), one)
    return made


@pytest.mark.parametrize("name", ["scales", "opacities", "sh0", "shN"])
def test_a_broken_gaussian_changes_no_colour_around_it(name: str) -> None:
    block = random_gaussians(RNG, 300, 1)
    places = RNG.uniform(0, 1, (300, 3))
    values = getattr(block, name).copy()
    values[7] = np.nan
    broken = dataclasses.replace(block, **{name: values})
    found = []
    for one, rows in ((broken, np.arange(300)), (block, np.delete(np.arange(300), 7))):
        made = Shades(1.0, Sim3.identity())
        made.add(places[rows], one.select(rows))
        found.append(made.means(None))
    assert np.allclose(found[0].colours, found[1].colours, rtol=1e-2, atol=1e-2)


def test_what_only_the_rim_of_another_shows_changes_little_and_a_stand_in_nothing() -> None:
    world = Seabed(0, count=3000)
    sidecars = [world.segment(0, 7, Sim3.identity()) for _ in range(2)]
    made = [
        flown(Member(f"S{number}", Sim3.identity(), sidecar), y, 2.0)
        for number, (sidecar, y) in enumerate(zip(sidecars, (1.5, -1.5), strict=True))
    ]
    black, white = np.zeros((4, 3)), np.eye(4)[:, :1] * np.ones(3)

    def step(count: int, made: list[Member] = made) -> float:
        """Of the first member's cell, all of it covered, beside another with `count` there."""
        means = [shades(black, 0.0, 1000).means(None), shades(white, 0.9, count).means(None)]
        return float(np.abs(aspects(made, means, 1.0)[0].steps).max())

    assert step(100) < 0.5 * step(1000) and step(10) < 0.1 * step(1000)
    assert step(2000) == pytest.approx(step(1000), rel=0.05)
    means = [shades(black, 0.0, 1000).means(None), shades(white, 0.0, 1000, 10.0).means(None)]
    assert np.abs(aspects(made, means, 1.0)[0].steps).max() == pytest.approx(step(1000), rel=0.05)
    known = dict(sidecars[1].quality) | {STAND_IN: 1}
    cloud = dataclasses.replace(made[1], sidecar=dataclasses.replace(sidecars[1], quality=known))
    assert step(1000, [made[0], cloud]) == 0.0


def test_colours_of_a_member_are_compared_in_the_frame_of_the_scene() -> None:
    any_ = random_gaussians(RNG, 300, 2)
    look = RNG.normal(size=(4, 3))
    scene = dataclasses.replace(
        any_,
        means=RNG.uniform(0.1, 0.9, (300, 3)),
        sh0=np.tile(look[0], (300, 1)),
        shN=np.concatenate([np.tile(look[1:], (300, 1, 1)), any_.shN[:, 3:]], axis=1),
    )
    pose = random_sim3(RNG)
    shades = Shades(1.0, pose)
    shades.add(scene.means.astype(float), transform_gaussians(scene, pose.inverse()))
    means = shades.means(None)
    assert np.allclose(means.colours, look, atol=1e-5)


def test_a_plain_cloud_is_merged_as_gaussians(tmp_path: Path) -> None:
    places = seabed(20_000).astype("<f4")
    table = np.zeros(
        len(places), [(n, "<f4") for n in "xyz"] + [(n, "u1") for n in ("red", "green", "blue")]
    )
    for axis, name in enumerate("xyz"):
        table[name] = places[:, axis]
    table["red"], table["blue"] = 255, 51
    path = tmp_path / "cloud.ply"
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
    lines += [f"property float {n}" for n in "xyz"]
    lines += [f"property uchar {n}" for n in ("red", "green", "blue")]
    path.write_bytes("\n".join([*lines, "end_header", ""]).encode() + table.tobytes())
    file = open_member(path)
    assert isinstance(file, CloudFile) and file.count == len(table)
    blocks = [
        (block.means.copy(), 0.5 + SH_C0 * block.sh0.copy(), np.exp(block.scales.copy()))
        for block in file.blocks(9000)
    ]
    assert np.array_equal(np.concatenate([b[0] for b in blocks]), places)
    assert np.allclose(blocks[0][1], [1.0, 0.0, 0.2], atol=1e-6)
    apart = np.sqrt(21.0 / 20_000)  # of points spread over the ground at random, about
    assert 0.1 * apart < blocks[0][2][0, 0] < apart
    path.write_bytes(b"ply\nformat binary_little_endian 1.0\nelement vertex 0\nend_header\n")
    with pytest.raises(FileUnreadable):
        open_member(path)
    write_ply(path, random_gaussians(RNG, 0, 1))
    with pytest.raises(FileUnreadable, match="nothing in it"):
        open_member(path)


def test_tiles_hold_every_gaussian_once_the_weightiest_first(tmp_path: Path) -> None:
    """More than two blocks of the file, so that tiles are filled in several goes."""
    made = random_gaussians(RNG, 70_000, 0)
    places = RNG.uniform([0, 0, 0], [20, 6, 0.1], (len(made), 3))
    write_ply(tmp_path / "scene.ply", dataclasses.replace(made, means=places))
    data, index = tmp_path / "scene.tiles", tmp_path / "tiles.json"
    assert write_tiles(tmp_path / "scene.ply", data, index, np.eye(3)) > 1
    told, rows = json.loads(index.read_text()), np.fromfile(data, ROW)
    there = rows["position"]
    assert np.array_equal(np.sort(there[:, 0]), np.sort(places[:, 0].astype(np.float32)))
    for tile in told["tiles"]:
        inside = slice(tile["first"], tile["first"] + tile["count"])
        assert (np.floor(there[inside, :2].astype(float) / told["side"]) == tile["at"]).all()
        assert (np.diff(weight_of(rows[inside])) <= 0).all()


def test_from_above_the_top_is_seen_and_not_what_lies_below(tmp_path: Path) -> None:
    """A dark table 60 cm over bright ground, over half of it."""
    count = 40_000
    places = RNG.uniform([0, 0, 0], [4, 2, 0.01], (count, 3))
    places[::2] = RNG.uniform([2, 0, 0.6], [4, 2, 0.61], (count // 2, 3))
    bright = np.full((count, 3), 0.9)
    bright[::2] = 0.2
    made = random_gaussians(RNG, count, 0)
    flat = np.full((count, 3), np.log(0.01))
    write_ply(
        tmp_path / "scene.ply",
        dataclasses.replace(made, means=places, sh0=shade(bright), scales=flat,
                            opacities=np.full(count, 3.0)),
    )  # fmt: skip
    seen = above(tmp_path / "scene.ply", Sim3.identity(), 2.0)
    assert seen is not None
    columns = seen.west + (np.arange(seen.rgb.shape[1]) + 0.5) * seen.pixel
    for inside, tone, height in (((0.2, 1.8), 0.9, 0.0), ((2.2, 3.8), 0.2, 0.6)):
        part = (columns > inside[0]) & (columns < inside[1])
        assert np.abs(np.median(seen.rgb[:, part]) / 255 - tone) < 0.02
        known = seen.known[:, part]
        assert known.mean() > 0.95
        assert np.abs(seen.rgb[:, part][known] / 255 - tone).mean() < 0.03
        assert np.nanmean(seen.height[:, part]) == pytest.approx(height, abs=0.03)
