"""Registration of two reconstructions, and the refusal of pairs that have nothing in common."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from stitch.bend import curvature
from stitch.guided import Marks, refine
from stitch.identical import identical
from stitch.register import Check, Edge, Method, hull_share, match, register, robust_sim3
from stitch.score import Thresholds, false_accepts, judge
from stitch.shared_frames import register_frames
from stitch.sidecar import Sidecar
from stitch.sim3 import Sim3, umeyama
from stitch.uncertainty import far_error
from tests.stitch_world import DEPTH_M, Seabed, edge, random_sim3

METHODS: tuple[Method, ...] = ("points", "frames", "raster", "pinned")
THRESHOLDS = Thresholds(min_inliers=12, min_share=0.2, min_hull_share=0.1)
RATIO = 0.85


def brute_force(source: np.ndarray, target: np.ndarray, ratio: float) -> set[tuple[int, int]]:
    a = source / np.linalg.norm(source, axis=1, keepdims=True)
    b = target / np.linalg.norm(target, axis=1, keepdims=True)
    distance = cdist(a, b)
    pairs = set()
    for i, row in enumerate(distance):
        first, second = np.argsort(row)[:2]
        if row[first] < ratio * row[second] and distance[:, first].argmin() == i:
            pairs.add((i, int(first)))
    return pairs


def test_matches_are_the_mutual_neighbours_that_pass_the_ratio() -> None:
    rng = np.random.default_rng(0)
    source = rng.integers(0, 200, (1500, 128), dtype=np.uint8)
    target = np.clip(source[rng.permutation(1500)[:300]] + rng.normal(size=(300, 128)) * 40, 0, 255)
    target = target.astype(np.uint8)
    found = {tuple(pair) for pair in match(source, target, RATIO).tolist()}
    assert found == brute_force(source.astype(float), target.astype(float), RATIO)
    assert len(found) > 200


def test_too_few_descriptors_give_no_matches() -> None:
    none, one = np.empty((0, 128), np.uint8), np.ones((1, 128), np.uint8)
    assert len(match(none, one, RATIO)) == len(match(one, one, RATIO)) == 0


@pytest.mark.parametrize("seed", range(8))
def test_transform_is_found_among_60_percent_wrong_matches(seed: int) -> None:
    world = Seabed(seed)
    a, b = random_sim3(world.rng), random_sim3(world.rng)
    target = world.segment(0.0, 7.0, a)
    source = world.segment(4.0, 11.0, b, wrong=0.6)
    found = register(1, source, 0, target, RATIO)
    assert judge(found, THRESHOLDS).accepted
    assert found.share == pytest.approx(0.4, abs=0.08)
    truth = a.inverse() @ b
    assert found.sim3 is not None
    assert found.sim3.angle_to(truth) < 0.2
    assert found.sim3.scale / truth.scale == pytest.approx(1.0, abs=0.003)
    places = source.points[::10]
    error = np.linalg.norm(found.sim3.apply(places) - truth.apply(places), axis=1)
    assert error.max() * a.scale < 0.02 * DEPTH_M


def test_same_input_gives_the_same_edge() -> None:
    world = Seabed(3)
    a = world.segment(0.0, 7.0, random_sim3(world.rng))
    b = world.segment(4.0, 11.0, random_sim3(world.rng), wrong=0.5)
    first, second = register(1, b, 0, a, RATIO), register(1, b, 0, a, RATIO)
    assert first.sim3 is not None
    assert second.sim3 is not None
    assert np.array_equal(first.sim3.rotation, second.sim3.rotation)
    assert first.inliers == second.inliers


def test_unrelated_ground_is_never_accepted() -> None:
    accepted = []
    for seed in range(25):
        a, b = Seabed(1000 + seed, count=900), Seabed(2000 + seed, count=900)
        found = register(
            1, b.segment(0, 12, random_sim3(b.rng)), 0, a.segment(0, 12, random_sim3(a.rng)), RATIO
        )
        accepted.append(judge(found, THRESHOLDS).accepted)
    assert not any(accepted)


def test_ground_that_looks_alike_but_lies_elsewhere_is_never_accepted() -> None:
    """Hundreds of matches that pass every descriptor test, none of them true."""
    for seed in range(25):
        world = Seabed(3000 + seed, count=250)
        a = world.segment(0, 12, random_sim3(world.rng))
        b = world.segment(0, 12, random_sim3(world.rng), wrong=1.0)
        found = register(1, b, 0, a, RATIO)
        assert found.matches > 200
        assert not judge(found, THRESHOLDS).accepted


def test_overlap_in_one_corner_is_refused_for_its_leverage() -> None:
    """Plenty of inliers on 4 % of the ground do not fix the far end."""
    world = Seabed(5, count=9000)
    a = world.segment(0.0, 6.2, random_sim3(world.rng))
    b = world.segment(5.9, 12.0, random_sim3(world.rng))
    found = register(1, b, 0, a, RATIO)
    verdict = judge(found, THRESHOLDS)
    assert found.inliers > 50
    assert not verdict.accepted
    assert "of the smaller footprint, 10% needed" in verdict.reason


def test_ground_in_a_corner_counts_by_its_reach_both_ways() -> None:
    rng = np.random.default_rng(3)
    ground = rng.uniform([0, 0, 0], [10, 4, 0.1], (2000, 3)).astype(np.float32)
    corner = rng.uniform([0, 0, 0], [2.5, 1.0, 0.1], (200, 3))
    stripe = rng.uniform([0, 0, 0], [0.5, 4.0, 0.1], (200, 3))
    line = rng.uniform([0, 0, 0], [10.0, 0.1, 0.1], (200, 3))
    assert hull_share(ground, corner) == pytest.approx(0.25, abs=0.03)
    assert hull_share(ground, stripe) == pytest.approx(0.05, abs=0.01)
    assert hull_share(ground, line) < 0.05
    assert hull_share(ground, corner[:2]) == 0.0


def test_points_that_look_alike_elsewhere_are_found_where_they_must_lie() -> None:
    """Half of the ground looks the same as another place of it: the ratio test drops all that."""
    world = Seabed(9, count=1600)
    half = len(world.descriptors) // 2
    world.descriptors[half:] = world.descriptors[:half]
    a = world.segment(0.0, 8.0, random_sim3(world.rng))
    b = world.segment(4.0, 12.0, random_sim3(world.rng))
    limit = 0.02 * a.median_depth
    pairs = match(b.descriptors, a.descriptors, RATIO)
    here, there = b.points[pairs[:, 0]].astype(float), a.points[pairs[:, 1]].astype(float)
    first = robust_sim3(here, there, limit)
    assert first is not None
    passed = np.linalg.norm(first.apply(here) - there, axis=1) < limit
    marks = [Marks(s.points, s.descriptors, np.ones(len(s.points))) for s in (b, a)]
    better, near = refine(marks[0], marks[1], first, limit, a.median_depth)
    assert len(near) > 1.5 * passed.sum()
    off = np.linalg.norm(better.apply(b.points[near[:, 0]]) - a.points[near[:, 1]], axis=1)
    assert off.max() < limit
    away = Sim3(first.scale, first.rotation, first.translation + 0.5 * a.median_depth)
    unmoved, nothing = refine(marks[0], marks[1], away, limit, a.median_depth)
    assert unmoved is away
    assert len(nothing) == 0


def test_matches_along_a_line_are_refused_for_their_leverage() -> None:
    """A cable over featureless sand: many inliers, and the roll about it is anybody's guess."""
    world = Seabed(6, count=4000)
    a = world.segment(0, 12, Sim3.identity())
    b = world.segment(0, 12, Sim3.identity())
    beside = np.abs(b.points[:, 1]) > 0.02
    strange = b.descriptors.copy()
    strange[beside] = np.roll(strange[beside], 37, axis=1)
    found = register(1, dataclasses.replace(b, descriptors=strange), 0, a, RATIO)
    verdict = judge(found, THRESHOLDS)
    assert found.inliers > 20
    assert not verdict.accepted
    assert "of the smaller footprint" in verdict.reason


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"inliers": 11, "matches": 20}, "11 inliers, 12 needed"),
        ({"matches": 501}, "20% of 501 matches agree, 20% needed"),
        ({"hull_share": 0.09}, "9% of the smaller footprint, 10% needed"),
        ({"sim3": None}, "no transform fits any of 200 matches, 12 inliers needed"),
        ({"inliers": 0, "matches": 0}, "0 inliers"),
    ],
)
def test_a_refusal_names_what_fell_short(changes: dict[str, object], says: str) -> None:
    good: Edge = edge(1, 0, Sim3.identity())
    assert judge(good, THRESHOLDS).accepted
    verdict = judge(dataclasses.replace(good, **changes), THRESHOLDS)  # type: ignore[arg-type]
    assert not verdict.accepted
    assert says in verdict.reason


def test_the_thresholds_themselves_are_enough() -> None:
    exact = dataclasses.replace(edge(1, 0, Sim3.identity()), inliers=12, matches=60, hull_share=0.1)
    assert judge(exact, THRESHOLDS).accepted


@pytest.mark.parametrize(
    ("loose", "accepted", "bent", "doubted"),
    [(105, True, False, False), (120, True, False, True), (150, False, True, False)],
)
def test_matches_that_lie_near_each_other_but_disagree_mean_a_bend(
    loose: int, accepted: bool, bent: bool, doubted: bool
) -> None:
    pair = dataclasses.replace(edge(1, 0, Sim3.identity()), inliers=100, loose=loose)
    verdict = judge(pair, THRESHOLDS)
    assert (verdict.accepted, verdict.bent, verdict.doubt != "") == (accepted, bent, doubted)


def test_a_bent_reconstruction_is_refused_and_says_so() -> None:
    """Half of the ground is common; the far end is 0.3 m too high at a depth of 2 m."""
    refused = 0
    for seed in range(6):
        world = Seabed(4000 + seed)
        a = world.segment(0.0, 9.0, random_sim3(world.rng))
        b = world.segment(1.0, 8.0, random_sim3(world.rng), bend_m=0.5)
        found = register(1, b, 0, a, RATIO)
        verdict = judge(found, THRESHOLDS)
        refused += verdict.bent and not verdict.accepted
        sound = register(1, world.segment(1.0, 8.0, random_sim3(world.rng)), 0, a, RATIO)
        assert sound.agreement > 0.97
        assert judge(sound, THRESHOLDS).doubt == ""
    assert refused == 6


def test_shared_frames_fix_what_their_centres_leave_open() -> None:
    """A straight track of 8 common frames: the roll comes from the rotations."""
    for seed in range(8):
        world = Seabed(5000 + seed)
        a, b = random_sim3(world.rng), random_sim3(world.rng)
        target, source = world.segment(0.0, 7.2, a), world.segment(4.0, 11.2, b)
        points = register(1, source, 0, target, RATIO)
        found = register_frames(points, source, target)
        truth = a.inverse() @ b
        assert found is not None
        assert found.sim3 is not None
        assert found.frames == 8
        assert found.sim3.angle_to(truth) < 1e-4
        assert found.sim3.scale / truth.scale == pytest.approx(1.0, abs=1e-6)
        assert judge(found, THRESHOLDS).accepted
        assert found.check is not None
        assert found.check.angle_deg < 0.2


def test_one_misplaced_frame_does_no_harm() -> None:
    world = Seabed(6000)
    a, b = random_sim3(world.rng), random_sim3(world.rng)
    target, source = world.segment(0.0, 7.2, a), world.segment(4.0, 11.2, b)
    rotations = source.rotations.copy()
    rotations[2] = [1.0, 0.0, 0.0, 0.0]
    source = dataclasses.replace(source, rotations=rotations)
    found = register_frames(register(1, source, 0, target, RATIO), source, target)
    assert found is not None
    assert found.sim3 is not None
    assert found.frames == 7
    assert found.sim3.angle_to(a.inverse() @ b) < 1e-3


def test_frames_and_ground_that_disagree_are_refused() -> None:
    """Bent cameras carry their frames away from the ground that other clips saw."""
    world = Seabed(6001)
    target = world.segment(0.0, 7.2, random_sim3(world.rng))
    source = world.segment(4.0, 11.2, random_sim3(world.rng))
    points = register(1, source, 0, target, RATIO)
    found = register_frames(points, source, target)
    assert found is not None
    far = Check(angle_deg=15.0, scale=0.001, offset=0.001)
    verdict = judge(dataclasses.replace(found, check=far), THRESHOLDS)
    assert (verdict.accepted, verdict.bent) == (False, True)
    assert "15.00 degrees" in verdict.reason
    blind = judge(dataclasses.replace(found, check=None), THRESHOLDS)
    assert not blind.accepted


def _with_keys(sidecar: Sidecar, world: Seabed, frame: Sim3) -> Sidecar:
    """Each point made from one keypoint, named by the world's point it is."""
    _, index = cKDTree(world.points).query(frame.apply(sidecar.points))
    first = np.unique(index, return_index=True)[1]
    counts = np.zeros(len(sidecar.points), np.uint8)
    counts[first] = 1
    return dataclasses.replace(
        sidecar, key_counts=counts, keys=np.asarray(index[np.sort(first)], np.uint32)
    )


def test_identical_keypoints_tell_sound_clips_from_bent_ones() -> None:
    world = Seabed(6010)
    a, b = random_sim3(world.rng), random_sim3(world.rng)
    target = _with_keys(world.segment(0.0, 7.2, a), world, a)
    source = _with_keys(world.segment(4.0, 11.2, b, wrong=0.02), world, b)
    pairs = identical(source, target)
    assert len(pairs) > 300
    apart = a.apply(target.points[pairs[:, 1]]) - b.apply(source.points[pairs[:, 0]])
    assert np.median(np.linalg.norm(apart, axis=1)) < 0.02
    points = register(1, source, 0, target, RATIO)
    nothing_alike = dataclasses.replace(points, matches=4, inliers=0, sim3=None)
    found = register_frames(nothing_alike, source, target)
    assert found is not None
    assert found.check is not None
    assert (found.matches, found.check.identical) == (len(pairs), len(pairs))
    assert found.check.share > 0.9
    assert found.check.angle_deg < 0.2
    assert judge(dataclasses.replace(found, hull_share=0.3), THRESHOLDS).accepted

    bowl = source.points.copy()
    bowl[:, 2] += 0.15 * source.median_depth * np.sin(bowl[:, 0] / source.median_depth * 6.0)
    bent = register_frames(points, dataclasses.replace(source, points=bowl), target)
    assert bent is not None
    assert bent.check is not None
    assert bent.check.share < 0.9
    verdict = judge(bent, THRESHOLDS)
    assert (verdict.accepted, verdict.bent) == (False, True)
    assert "keypoints that both have, 90% needed: bent" in verdict.reason


def test_no_edge_from_two_frames_or_from_a_vehicle_that_stands_still() -> None:
    world = Seabed(6002)
    a = world.segment(0.0, 7.0, random_sim3(world.rng))
    b = world.segment(6.4, 12.0, random_sim3(world.rng))
    points = register(1, b, 0, a, RATIO)
    assert register_frames(points, b, a) is None
    still = dataclasses.replace(
        a, translations=np.tile(a.translations[:1], (len(a.translations), 1))
    )
    assert register_frames(points, a, still) is None
    other = Seabed(6003).segment(0.0, 7.0, random_sim3(world.rng))
    assert register_frames(points, a, other) is None


def test_an_even_fit_curves_nowhere_and_a_bowl_is_followed_to_the_far_end() -> None:
    rng = np.random.default_rng(0)
    axes = np.eye(3)[:2]
    places = rng.uniform([0, 0, 0], [3, 3, 0.1], (200, 3))
    everywhere = rng.uniform([0, 0, 0], [9, 3, 0.1], (2000, 3))
    noise = rng.normal(size=(200, 3)) * 0.005
    assert curvature(places, noise, everywhere, axes) == 0.0
    bowl = noise + np.outer(0.02 * (places[:, 0] - 1.5) ** 2, [0, 0, 1])
    assert 0.5 < curvature(places, bowl, everywhere, axes) / (0.02 * 7.2**2) < 1.0
    tilt = noise + np.outer(0.05 * places[:, 0], [0, 0, 1])
    assert curvature(places, tilt, everywhere, axes) == 0.0
    assert curvature(places[:20], bowl[:20], everywhere, axes) == 0.0


def test_the_far_error_is_about_what_happens() -> None:
    """Common points on the first 1.5 of 9 m; noise of 1 cm."""
    rng = np.random.default_rng(1)
    everywhere = rng.uniform([0, 0, 0], [9, 3, 0.3], (1000, 3))
    predicted, actual = [], []
    for _ in range(40):
        places = rng.uniform([0, 0, 0], [1.5, 3, 0.3], (40, 3))
        seen = places + rng.normal(size=places.shape) * 0.01
        fit = umeyama(seen, places)
        predicted.append(far_error(places, fit.apply(seen) - places, everywhere, 2.0))
        off = np.linalg.norm(fit.apply(everywhere) - everywhere, axis=1)
        actual.append(np.percentile(off, 95))
    assert 0.8 < np.median(predicted) / np.sqrt(np.mean(np.square(actual))) < 3.0


def test_a_small_overlap_is_refused_with_what_it_leaves_uncertain() -> None:
    small = dataclasses.replace(edge(1, 0, Sim3.identity()), hull_share=0.09, far_error=0.004)
    refused = judge(small, THRESHOLDS)
    assert not refused.accepted
    assert "0.4% of the extent uncertain" in refused.reason


@pytest.mark.parametrize(("method", "accepted"), [("points", True), ("raster", False)])
def test_pictures_from_above_must_hold_the_far_end(method: Method, accepted: bool) -> None:
    loose = dataclasses.replace(edge(1, 0, Sim3.identity()), method=method, far_error=0.012)
    verdict = judge(loose, THRESHOLDS)
    assert verdict.accepted is accepted
    assert accepted or "1.2% of the extent uncertain, 1% allowed" in verdict.reason
    firm = dataclasses.replace(loose, far_error=0.009)
    assert judge(firm, THRESHOLDS).accepted


def test_the_rate_of_false_accepts_is_told_where_it_was_measured() -> None:
    """None of n: the rate at which n pairs are all refused once in twenty times."""
    edges = [Edge(1, 0, 40, 30, 0.5, 0.004, Sim3.identity(), method) for method in METHODS]
    told = false_accepts(edges + edges)
    assert list(told) == ["points", "raster"]
    for measured in told.values():
        assert measured["accepted"] == 0
        every_refused = (1.0 - measured["at_most"]) ** measured["unrelated_pairs"]
        assert every_refused == pytest.approx(0.05, abs=0.002)
    assert false_accepts([]) == {}
