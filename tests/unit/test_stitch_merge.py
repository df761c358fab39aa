"""Who keeps a place that several members saw, and the scene's own sidecar."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from stitch import merge
from stitch.aspects import Aspect
from stitch.cover import Cover
from stitch.harmonise import Tint
from stitch.merge import Finish, merge_gaussians, merge_sidecars
from stitch.ply import read_ply, write_ply
from stitch.register import register
from stitch.score import Thresholds, judge
from stitch.seams import Tally, seams
from stitch.sim3 import transform_gaussians
from stitch.territory import Member, Territory
from tests.stitch_world import Seabed, flown, random_gaussians, random_sim3, rotation


def members(seed: int, spans: list[tuple[float, float]]) -> list[Member]:
    world = Seabed(seed, count=3000)
    made = []
    for number, (start, end) in enumerate(spans):
        pose = random_sim3(world.rng)
        made.append(Member(f"S{number}", pose, world.segment(start, end, pose)))
    return made


def land_of(made: list[Member], spans: list[tuple[float, float]]) -> Territory:
    """Members whose gaussians lie closely on the ground of their spans, and nowhere else."""
    covers = []
    for start, end in spans:
        covers.append(Cover(np.eye(3), 2.0))
        covers[-1].add(ground(start, end))
        covers[-1].close()
    return Territory(made, covers, np.array([0.0, 0.0, 1.0]))


def ground(start: float, end: float) -> np.ndarray:
    x, y = np.meshgrid(np.arange(start, end, 0.02), np.arange(-1.4, 1.4, 0.02))
    return np.stack([x.ravel(), y.ravel(), np.full(x.size, 0.07)], axis=1)


def test_overlap_is_divided_without_holes_or_doubles() -> None:
    spans = [(0.0, 7.0), (4.0, 12.0)]
    land = land_of(members(0, spans), spans)
    both = ground(0, 12)
    first, second = land.keeps(0, both), land.keeps(1, both)
    assert (first | second).all()
    inside = (both[:, 0] > 4.3) & (both[:, 0] < 6.7) & (np.abs(both[:, 1]) < 1.2)
    assert not (first & second)[inside].any()
    assert np.count_nonzero(first & second) < 0.02 * len(both)  # at the rims
    assert first[both[:, 0] < 3.5].all()
    assert second[both[:, 0] > 7.5].all()


def test_place_beside_a_camera_that_looked_elsewhere_is_kept() -> None:
    """Member 1 passed right over x < 4 but has gaussians only at x > 6."""
    land = land_of(members(1, [(0, 7), (0, 12)]), [(0, 7), (6, 12)])
    assert land.keeps(0, ground(0.0, 4.0)).all()
    assert not land.keeps(1, ground(6.2, 6.8)).any()


def test_nobody_gives_way_at_the_rim_of_another() -> None:
    """Beyond its last gaussians the first member's cameras still came nearest."""
    spans = [(0.0, 7.0), (4.0, 12.0)]
    land = land_of(members(0, spans), spans)
    assert land.keeps(1, ground(7.1, 7.6)).all()  # within a cell of it


def test_the_rim_of_what_one_covers_goes_to_who_covers_it_all_around() -> None:
    """There the last gaussians of the first member lie here and there: cut by distance alone, the
    ground between them was a hole."""
    spans = [(0.0, 7.0), (4.0, 12.0)]
    made = members(8, spans)
    made[1] = flown(made[1], y=0.0, height=3.0)  # the first one's cameras see all of it better
    land = land_of(made, spans)
    rim = ground(6.97, 7.0)
    rim = rim[np.abs(rim[:, 1]) < 1.2]
    assert land.keeps(1, rim).all()
    assert not land.keeps(0, rim).any()
    assert not land.keeps(1, ground(5.0, 6.5)).any()


def test_on_the_rim_of_both_nobody_gives_way_to_who_has_nothing_just_there() -> None:
    """The last gaussians of one and the first of the other lie in one cell, in a half of it each;
    whose camera saw it better says nothing about whose ground is closed."""
    made = members(8, [(0.0, 7.0), (4.0, 12.0)])
    land = land_of(made, [(0.01, 5.0), (5.01, 12.0)])  # cells of 8 cm, one from 4.96 to 5.04
    for own, half in ((0, ground(4.97, 5.0)), (1, ground(5.01, 5.04))):
        half = half[np.abs(half[:, 1]) < 1.2]
        assert land.keeps(own, half).all()


def test_who_flew_right_over_a_place_keeps_it() -> None:
    """One vehicle came nearer, 1.9 m instead of 2.0, and saw it from the side."""
    spans = [(0.0, 7.0), (0.0, 7.0)]
    made = members(9, spans)
    made[0] = flown(made[0], y=1.6, height=1.0)
    land = land_of(made, spans)
    inside = ground(1.0, 6.0)
    under = inside[np.abs(inside[:, 1]) < 0.1]
    assert land.keeps(1, under).all() and not land.keeps(0, under).any()
    beside = inside[np.abs(inside[:, 1] - 1.2) < 0.1]
    assert land.keeps(0, beside).all() and not land.keeps(1, beside).any()


def test_gaussians_without_a_place_are_dropped() -> None:
    places = np.array([[1.0, 0, 0], [np.nan, 0, 0], [np.inf, 0, 0]])
    for spans in ([(0.0, 7.0)], [(0.0, 7.0), (4.0, 12.0)]):
        assert land_of(members(2, spans), spans).keeps(0, places).tolist() == [True, False, False]


def test_no_gaussians_at_all() -> None:
    spans = [(0.0, 7.0), (4.0, 12.0)]
    land = land_of(members(2, spans), spans)
    assert land.keeps(0, np.empty((0, 3))).tolist() == []
    nothing = Cover(np.eye(3), 2.0)
    nothing.add(np.empty((0, 3)))
    nothing.close()
    assert not nothing.grade(np.zeros((3, 3))).any()


def test_merged_keyframes_see_the_scene_as_their_members_did() -> None:
    made = members(3, [(0, 7), (4, 12)])
    scene = merge_sidecars(made)
    start = 0
    for member in made:
        count = len(member.sidecar.keyframe_names)
        own = member.sidecar.points[:count].astype(float)
        before = rotation(member.sidecar).apply(own) + member.sidecar.translations
        rows = slice(start, start + count)
        after = rotation(scene)[rows].apply(member.pose.apply(own)) + scene.translations[rows]
        assert np.allclose(after, before * member.pose.scale, atol=1e-5)
        assert np.allclose(scene.centres()[rows], member.pose.apply(member.sidecar.centres()))
        assert scene.keyframe_names[start] == f"{member.name}/f000000.jpg"
        start += count
    assert scene.median_depth == pytest.approx(2.0)


def test_a_point_that_two_members_hold_stays_once() -> None:
    made = members(4, [(0, 7), (4, 12)])
    scene = merge_sidecars(made)
    held = [m.pose.apply(m.sidecar.points) for m in made]
    shared = sum(len(p) for p in held) - 3000
    assert shared > 600
    assert len(scene.points) == pytest.approx(3000, abs=0.05 * shared)


def test_a_merged_scene_registers_where_its_members_overlap() -> None:
    """The ratio test must not see one place twice and refuse it."""
    world = Seabed(5, count=3000)
    poses = [random_sim3(world.rng) for _ in range(3)]
    a, b, other = (
        world.segment(start, end, pose)
        for (start, end), pose in zip([(0, 8), (2, 10), (3, 7)], poses, strict=True)
    )
    scene = merge_sidecars([Member("a", poses[0], a), Member("b", poses[1], b)])
    for target in (scene, a):
        found = register(1, other, 0, target, 0.85)
        assert found.inliers > 0.9 * len(other.points)
    assert judge(found, Thresholds(min_inliers=12, min_share=0.2, min_hull_share=0.1)).accepted


def test_scene_sidecar_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "MAX_SCENE_POINTS", 500)
    scene = merge_sidecars(members(6, [(0, 7), (4, 12)]))
    assert len(scene.points) == 500
    cells = {(int(x), y > 0) for x, y, _ in scene.points}
    assert cells >= set(itertools.product(range(1, 11), (False, True)))


def files(made: list[Member], tmp_path: Path, degree: int = 1) -> list[Path]:
    """A PLY for each member: dense ground at 2 cm, in the member's own frame."""
    rng = np.random.default_rng(0)
    paths = []
    for member in made:
        seen = member.pose.apply(member.sidecar.points)
        low, high = seen.min(axis=0), seen.max(axis=0)
        places = rng.uniform([low[0], low[1], 0.06], [high[0], high[1], 0.08], (40_000, 3))
        any_ = random_gaussians(rng, len(places), degree)
        own = dataclasses.replace(any_, means=places)
        paths.append(tmp_path / f"{member.name}.ply")
        write_ply(paths[-1], transform_gaussians(own, member.pose.inverse()))
    return paths


def test_the_merged_file_holds_what_each_member_keeps(tmp_path: Path) -> None:
    made = members(7, [(0, 7), (4, 12)])
    paths = files(made, tmp_path, degree=3)
    merged = merge_gaussians(made, paths, tmp_path / "scene.ply", finish=Finish(aspects=False))
    scene = read_ply(tmp_path / "scene.ply")
    assert merged.before == (40_000, 40_000)
    assert len(scene) == sum(merged.kept)
    first = 0
    for own, (member, path) in enumerate(zip(made, paths, strict=True)):
        source = read_ply(path)
        mask = np.unpackbits(merged.masks[own], count=len(source)).astype(bool)
        moved = transform_gaussians(source.select(mask), member.pose)
        rows = np.arange(first, first + merged.kept[own])
        for name in ("means", "scales", "quats", "opacities", "sh0", "shN"):
            assert np.allclose(getattr(scene, name)[rows], getattr(moved, name), atol=1e-6), name
        first += merged.kept[own]


@pytest.mark.parametrize("harmonise", [False, True])
def test_a_stitch_is_undone_by_what_its_report_keeps(tmp_path: Path, harmonise: bool) -> None:
    """Of each member's gaussians those that the scene holds come back, in the member's frame."""
    made = members(10, [(0, 7), (4, 12)])
    paths = files(made, tmp_path, degree=3)
    finish = Finish(harmonise=harmonise)
    merged = merge_gaussians(made, paths, tmp_path / "scene.ply", finish=finish)
    scene = read_ply(tmp_path / "scene.ply")
    parts = np.split(np.arange(len(scene)), np.cumsum(merged.kept)[:-1])
    whole = zip(made, paths, merged.masks, parts, merged.aspects, strict=True)
    for own, (member, path, mask, rows, aspect) in enumerate(whole):
        source = read_ply(path)
        kept = source.select(np.unpackbits(mask, count=len(source)).astype(np.bool_))
        assert aspect.moves
        back = Aspect(aspect.cell, aspect.keys, -aspect.steps).apply(scene.select(rows))
        if harmonise:
            tint = merged.tints[own]
            back = Tint(1.0 / tint.gain, -tint.offset / tint.gain).apply(back)
        back = transform_gaussians(back, member.pose.inverse())
        for name in ("scales", "quats", "opacities", "sh0", "shN"):
            assert np.allclose(getattr(back, name), getattr(kept, name), atol=4e-6), name
        assert np.allclose(back.means, kept.means, atol=2e-6 * np.abs(kept.means).max())


def test_the_seam_has_the_density_of_one_capture(tmp_path: Path) -> None:
    made = members(8, [(0, 7), (4, 12)])
    (seam,) = merge_gaussians(made, files(made, tmp_path), tmp_path / "scene.ply").seams
    assert (seam.first, seam.second) == (0, 1)
    assert 0.9 < seam.density < 1.1
    assert seam.offset < 0.005
    scene = read_ply(tmp_path / "scene.ply").means
    counts, _, _ = np.histogram2d(
        scene[:, 0], scene[:, 1], bins=(58, 14), range=((0.2, 11.8), (-1.4, 1.4))
    )
    assert counts.min() > 0  # no holes


def test_a_seam_tells_how_far_surfaces_and_colours_are_apart() -> None:
    rng = np.random.default_rng(1)
    places = rng.uniform([0, 0, 0], [2, 2, 0.01], (20_000, 3))
    one, other = Tally(0.2), Tally(0.2)
    everyone = np.ones(len(places), np.bool_)
    one.add(places + np.array([0, 0, 0.05]), np.zeros((len(places), 3), np.float32), everyone)
    other.add(places + np.array([0, 0, 0.08]), np.full((len(places), 3), 0.1, np.float32), everyone)
    (seam,) = seams([one, other], np.array([0.0, 0.0, 1.0]))
    assert seam.offset == pytest.approx(0.03, abs=0.002)
    assert seam.colour_step == pytest.approx(0.1 * np.sqrt(3) * 0.2820948, rel=1e-3)
    assert seam.density == pytest.approx(2.0, abs=0.1)


def test_what_lies_far_outside_is_decided_as_the_rest() -> None:
    spans = [(0.0, 7.0), (4.0, 12.0)]
    land = land_of(members(9, spans), spans)
    places = np.concatenate(
        [ground(0, 12), [[50.0, 0, 0], [np.nan, 0, 0], [1e30, 0, 0], [5.5, 0, 40.0]]]
    )
    for own in (0, 1):
        parcel = land.parcel(own)
        halves = [parcel.keeps(places[:5000]), parcel.keeps(places[5000:])]
        kept = np.concatenate(halves)
        assert kept[-4:].tolist() == [True, False, True, True]
        assert np.count_nonzero(kept != land.keeps(own, places)) < 0.01 * len(places)
