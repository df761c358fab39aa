"""Who keeps a place that several members saw, and the scene's own sidecar."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from stitch import merge
from stitch.merge import Member, Territory, merge_sidecars
from stitch.register import register
from stitch.score import Thresholds, judge
from stitch.sidecar import Sidecar
from tests.stitch_world import Seabed, random_sim3


def members(seed: int, spans: list[tuple[float, float]]) -> list[Member]:
    world = Seabed(seed, count=3000)
    made = []
    for number, (start, end) in enumerate(spans):
        pose = random_sim3(world.rng)
        made.append(Member(f"S{number}", pose, world.segment(start, end, pose)))
    return made


def ground(start: float, end: float) -> np.ndarray:
    x, y = np.meshgrid(np.arange(start, end, 0.05), np.arange(-1.4, 1.4, 0.05))
    return np.stack([x.ravel(), y.ravel(), np.full(x.size, 0.07)], axis=1)


def test_overlap_is_divided_without_holes_or_doubles() -> None:
    land = Territory(members(0, [(0, 7), (4, 12)]))
    both = ground(0, 12)
    first, second = land.keeps(0, both), land.keeps(1, both)
    assert (first | second).all()
    assert not (first & second)[(both[:, 0] > 4.3) & (both[:, 0] < 6.7)].any()
    assert np.count_nonzero(first & second) < 0.02 * len(both)
    assert first[both[:, 0] < 3.5].all()
    assert second[both[:, 0] > 7.5].all()


def test_place_beside_a_camera_that_looked_elsewhere_is_kept() -> None:
    """Member 1 passed right over x < 4 but reconstructed only x > 6."""
    first, second = members(1, [(0, 7), (0, 12)])
    away = second.pose.apply(second.sidecar.points)[:, 0] > 6.0
    seen = dataclasses.replace(
        second.sidecar,
        **{
            name: getattr(second.sidecar, name)[away]
            for name in ("points", "descriptors", "track_length", "error_px", "rgb")
        },
    )
    land = Territory([first, Member("S1", second.pose, seen)])
    assert land.keeps(0, ground(0.0, 4.0)).all()


def test_gaussians_without_a_place_are_dropped() -> None:
    places = np.array([[1.0, 0, 0], [np.nan, 0, 0], [np.inf, 0, 0]])
    for made in (members(2, [(0, 7)]), members(2, [(0, 7), (4, 12)])):
        assert Territory(made).keeps(0, places).tolist() == [True, False, False]


def test_no_gaussians_at_all() -> None:
    assert Territory(members(2, [(0, 7), (4, 12)])).keeps(0, np.empty((0, 3))).tolist() == []


def rotation(sidecar: Sidecar) -> Rotation:
    return Rotation.from_quat(np.roll(sidecar.rotations, -1, axis=1))


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
