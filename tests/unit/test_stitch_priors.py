"""Gravity and positions: they place a scene and unbend a long chain, and bend nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stitch.certainty import certainties
from stitch.motions import adjoint, small
from stitch.posegraph import Solution, solve
from stitch.priors import Placed, Readings, independent, place, readings, tilt
from stitch.register import Edge
from stitch.sim3 import Sim3, umeyama
from tests.stitch_world import Seabed, edge, noisy, random_sim3
from worker_agent.stages.stitch_world import fit

STEP, LONG = 5.0, 8.0  # metres between members, and along one
GRAVITY = np.array([0.0, 0.0, -1.0])
BOX = np.array([[-4.0, -1, 0], [4, -1, 0], [4, 1, 0], [-4, 1, 0]])


class Chain:
    """Members in a row along x, metres east, north, up; each in a frame of its own."""

    def __init__(
        self, seed: int, count: int, gps_m: float, off: dict[int, list[float]] | None = None
    ) -> None:
        rng = np.random.default_rng(seed)
        self.poses: list[Sim3] = []
        self.readings: list[Readings] = []
        for i in range(count):
            pose = Sim3(1.0, np.eye(3), np.array([STEP * i, 0, 0])) @ random_sim3(rng)
            seen = np.stack(
                [np.linspace(-4, 4, 16), 0.3 * rng.normal(size=16), np.full(16, 2.0)], axis=1
            ) + np.array([STEP * i, 0, 0])
            fixes = seen + rng.normal(size=3) * gps_m + np.array((off or {}).get(i, [0, 0, 0]))
            down = pose.rotation.T @ GRAVITY
            self.poses.append(pose)
            self.readings.append(Readings(pose.inverse().apply(seen), fixes, down, 0.01))
        self.extents = [
            (pose.inverse().apply(np.array([[STEP * i, 0, 0]]))[0], LONG / pose.scale)
            for i, pose in enumerate(self.poses)
        ]
        self.edges = [self._edge(rng, i + 1, i) for i in range(count - 1)]

    def _edge(self, rng: np.random.Generator, source: int, target: int) -> Edge:
        truth = self.poses[target].inverse() @ self.poses[source]
        return edge(source, target, noisy(rng, truth, LONG / self.poses[source].scale), 200)

    def solved(self) -> Solution:
        return solve(self.extents, self.edges)

    def placed(self) -> Placed:
        return place(self.solved(), self.extents, self.edges, self.readings, fit)

    def corners(self, solution: Solution) -> np.ndarray:
        """Of all members, where the solution puts them."""
        return np.concatenate(
            [
                found.apply(pose.inverse().apply(BOX + np.array([STEP * i, 0, 0])))
                for i, (pose, found) in enumerate(zip(self.poses, solution.poses, strict=True))
            ]
        )

    def truth(self) -> np.ndarray:
        return np.concatenate([BOX + np.array([STEP * i, 0, 0]) for i in range(len(self.poses))])

    def worst_m(self, solution: Solution) -> float:
        """After the best similarity of the whole."""
        found, truth = self.corners(solution), self.truth()
        return float(np.linalg.norm(umeyama(found, truth).apply(found) - truth, axis=1).max())


@pytest.mark.parametrize("off", [[12.0, 0, 0], [0, 12.0, 0], [0, 0, 12.0]])
@pytest.mark.parametrize(("count", "who"), [(2, 1), (3, 0), (6, 3)])
def test_positions_12_m_off_do_not_bend_the_map(count: int, who: int, off: list[float]) -> None:
    right, chain = Chain(1, count, 0.3), Chain(1, count, 0.3, {who: off})
    before, after = right.corners(right.placed().solution), chain.corners(chain.placed().solution)
    back = umeyama(after, before)
    metres = chain.poses[0].scale
    assert np.linalg.norm(back.apply(after) - before, axis=1).max() * metres < 0.005
    assert chain.worst_m(chain.placed().solution) < chain.worst_m(chain.solved()) + 0.01


def test_along_a_long_chain_positions_take_out_what_adds_up() -> None:
    chain = Chain(2, 60, 1.0, {20: [12.0, 5.0, 0.0]})
    assert chain.worst_m(chain.placed().solution) < 0.6 * chain.worst_m(chain.solved())


def over_one_place(
    seed: int, *, pairs_off: float, scatter_m: float, drift: float = 0.0
) -> list[float]:
    """Three members 60 m wide over the same ground, each pair of them registered: the third comes
    out `pairs_off` too large, and its pairs know that they may be so uncertain. The positions of
    the first are stretched by `drift`. How large each is in the end, over its true size."""
    rng = np.random.default_rng(seed)
    track = np.array([[20.0 * (k % 4 - 1.5), 15.0 * (k // 4 - 1.5), 30.0] for k in range(16)])
    chain = Chain(seed, 3, 0.0)
    chain.poses = [Sim3(1.0, np.eye(3), rng.normal(size=3)) @ random_sim3(rng) for _ in range(3)]
    chain.readings, chain.extents, chain.edges = [], [], []
    for i, pose in enumerate(chain.poses):
        back = pose.inverse()
        fixes = track * (1.0 + drift * (i == 0)) + scatter_m * rng.normal(size=track.shape)
        chain.readings.append(Readings(back.apply(track), fixes, pose.rotation.T @ GRAVITY, 0.01))
        chain.extents.append((back.apply(np.zeros((1, 3)))[0], 80.0 / pose.scale))
    for i, j in ((1, 0), (2, 0), (2, 1)):
        seen = chain.poses[j].inverse() @ chain.poses[i]
        at = Sim3(1.0, np.eye(3), chain.extents[i][0])
        grown = at @ Sim3(1.0 + pairs_off * (i == 2), np.eye(3), np.zeros(3)) @ at.inverse()
        found = edge(i, j, noisy(rng, seen, 80.0 / chain.poses[i].scale) @ grown)
        chain.edges.append(replace(found, far_error=pairs_off))
    placed = chain.placed()
    assert placed.world is not None
    return [
        placed.world.sim3.scale * found.scale / pose.scale
        for found, pose in zip(placed.solution.poses, chain.poses, strict=True)
    ]


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_where_pairs_are_uncertain_positions_say_how_large_a_member_is(seed: int) -> None:
    sharp = over_one_place(seed, pairs_off=0.03, scatter_m=0.5)
    assert sharp[2] / sharp[0] == pytest.approx(1.0, abs=0.013)
    vague = over_one_place(seed, pairs_off=0.03, scatter_m=8.0)
    assert vague[2] / vague[0] > 1.018


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_positions_that_drift_do_not_stretch_what_images_hold(seed: int) -> None:
    sizes = over_one_place(seed, pairs_off=0.0, scatter_m=0.02, drift=0.05)
    assert sizes[0] / sizes[1] == pytest.approx(1.0, abs=0.008)


def test_errors_that_repeat_each_other_count_once() -> None:
    rng = np.random.default_rng(13)
    white = rng.normal(size=(400, 3))
    assert 250 < independent(white) <= 400
    assert independent(np.repeat(white[:40], 10, axis=0)) < 60
    steady = np.concatenate([np.ones((8, 3)), -np.ones((8, 3))])
    assert independent(steady) < 3
    assert independent(np.zeros((5, 3))) == 5


def test_the_scene_is_metric_upright_and_where_it_belongs() -> None:
    chain = Chain(3, 6, 0.2)
    placed = chain.placed()
    assert placed.world is not None and placed.world.metric
    found = placed.world.sim3.apply(chain.corners(placed.solution))
    assert np.linalg.norm(found - chain.truth(), axis=1).max() < 0.6
    assert placed.world.sim3.scale == pytest.approx(chain.poses[0].scale, rel=0.02)
    assert placed.position_residual_m is not None and placed.position_residual_m < 0.6
    assert placed.gravity_residual_deg is not None and placed.gravity_residual_deg < 2.0
    assert placed.solution.poses[0].scale == 1.0


def test_gravity_alone_makes_it_upright_and_of_no_known_size() -> None:
    chain = Chain(4, 3, 0.0)
    nothing = np.full((16, 3), np.nan)
    chain.readings = [Readings(r.centres, nothing, r.down, r.spread) for r in chain.readings]
    placed = chain.placed()
    assert placed.world is not None and not placed.world.metric
    for pose, found in zip(chain.poses, placed.solution.poses, strict=True):
        down = (placed.world.sim3 @ found).rotation @ (pose.rotation.T @ GRAVITY)
        assert np.degrees(np.arccos(down @ GRAVITY)) < 1.5
    assert placed.position_residual_m is None


def test_without_readings_nothing_moves() -> None:
    chain = Chain(5, 4, 0.0)
    chain.readings = [Readings(r.centres, np.full((16, 3), np.nan), None) for r in chain.readings]
    placed, solution = chain.placed(), chain.solved()
    assert placed.world is None and placed.gravity_residual_deg is None
    assert np.array_equal(chain.corners(placed.solution), chain.corners(solution))


def test_gravity_of_a_sidecar_is_the_mean_of_its_cameras() -> None:
    frame = random_sim3(np.random.default_rng(6))
    sidecar = Seabed(6).segment(0, 6, frame)
    found = readings(sidecar, np.full((len(sidecar.keyframe_names), 3), np.nan))
    assert found.down is not None
    assert np.allclose(frame.rotation @ found.down, GRAVITY, atol=1e-6)
    assert found.spread < 1e-6


def test_a_pair_is_tilted_by_the_angle_between_both_gravities() -> None:
    chain = Chain(7, 2, 0.0)
    assert (tilt(chain.edges[0], chain.readings[1], chain.readings[0]) or 0.0) < 0.02
    over = Sim3(1.0, np.diag([1.0, -1.0, -1.0]), np.zeros(3))
    turned = edge(1, 0, chain.poses[0].inverse() @ over @ chain.poses[1])
    assert (tilt(turned, chain.readings[1], chain.readings[0]) or 0.0) > 3.0


def test_the_farther_from_the_first_the_less_certain_and_loops_help() -> None:
    chain = Chain(8, 8, 0.0)
    sure = certainties(chain.solved(), chain.extents, chain.edges)
    assert sorted(sure) == list(range(1, 8))
    turns = [sure[i].rotation_deg for i in range(1, 8)]
    assert turns == sorted(turns) and turns[-1] > 2 * turns[0]
    rng = np.random.default_rng(9)
    chain.edges.append(chain._edge(rng, 7, 0))
    closed = certainties(chain.solved(), chain.extents, chain.edges)
    assert closed[7].rotation_deg < 0.7 * sure[7].rotation_deg
    assert closed[7].position < sure[7].position and closed[7].scale < sure[7].scale


def test_a_small_motion_before_a_pose_is_its_adjoint_after_it() -> None:
    rng = np.random.default_rng(10)
    pose, step = random_sim3(rng), rng.normal(size=7) * 1e-5
    exact = pose @ small(step) @ pose.inverse()
    linear = small(adjoint(pose) @ step)
    points = rng.normal(size=(5, 3))
    moved = exact.apply(points) - points
    assert np.allclose(linear.apply(points) - points, moved, atol=1e-3 * np.abs(moved).max())
