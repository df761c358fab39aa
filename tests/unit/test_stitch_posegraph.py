"""One frame from many pairs, some of them wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.many_members import loops
from bench.posegraph import ring
from stitch.posegraph import bridges, components, solve
from stitch.register import Edge
from stitch.sim3 import Sim3
from tests.stitch_world import edge, noisy, random_sim3


def loop(seed: int, count: int, wrong: int) -> tuple[list[Sim3], list[Edge], set[int]]:
    """A closed survey: each member meets its next three. Poses to the world, edges, wrong ones.

    Members lie far from their own origin, as nothing forbids.
    """
    rng = np.random.default_rng(seed)
    poses = [random_sim3(rng) for _ in range(count)]
    pairs = [(i, (i + step) % count) for step in (1, 2, 3) for i in range(count)]
    bad = set(map(int, rng.choice(len(pairs), wrong, replace=False)))
    edges = []
    for k, (i, j) in enumerate(pairs):
        truth = poses[i].inverse() @ poses[j]
        if k in bad:
            edges.append(edge(j, i, random_sim3(rng), int(rng.integers(12, 120))))
        else:
            size = 8.0 / poses[j].scale
            edges.append(edge(j, i, noisy(rng, truth, size), int(rng.integers(30, 400))))
    return poses, edges, bad


@pytest.mark.parametrize(("seed", "wrong"), [(0, 0), (1, 3), (2, 3), (3, 7), (4, 7), (5, 10)])
def test_wrong_edges_are_found_and_do_no_harm(seed: int, wrong: int) -> None:
    poses, edges, bad = loop(seed, 12, wrong)
    centre = np.zeros(3)
    solution = solve([(centre, 8.0 / pose.scale) for pose in poses], edges)
    assert set(solution.rejected) == bad
    assert solution.members == tuple(range(12))
    for pose, found in zip(poses, solution.poses, strict=True):
        truth = poses[0].inverse() @ pose
        assert found.angle_to(truth) < 1.0
        assert found.scale / truth.scale == pytest.approx(1.0, abs=0.02)
        gap = np.linalg.norm(found.translation - truth.translation)
        assert gap * poses[0].scale < 0.02 * 8.0


def test_an_origin_far_from_the_data_changes_nothing() -> None:
    poses, edges, bad = loop(7, 10, 3)
    near = solve([(np.zeros(3), 8.0 / pose.scale) for pose in poses], edges)
    away = Sim3(1.0, np.eye(3), np.array([300.0, -200.0, 100.0]))
    moved = [
        edge(e.source, e.target, away @ e.sim3 @ away.inverse(), e.inliers)
        for e in edges
        if e.sim3 is not None
    ]
    far = solve([(away.translation, 8.0 / pose.scale) for pose in poses], moved)
    assert set(near.rejected) == set(far.rejected) == bad
    for a, b in zip(near.poses, far.poses, strict=True):
        assert np.allclose((away.inverse() @ b @ away).translation, a.translation, atol=1e-5)


def test_the_first_member_is_the_frame_exactly() -> None:
    poses, edges, _ = loop(8, 5, 0)
    first = solve([(np.zeros(3), 8.0 / pose.scale) for pose in poses], edges).poses[0]
    assert first.scale == 1.0
    assert np.array_equal(first.rotation, np.eye(3))
    assert not first.translation.any()


def test_one_pair_is_taken_as_it_is() -> None:
    truth = random_sim3(np.random.default_rng(9))
    solution = solve([(np.zeros(3), 1.0), (np.ones(3), 2.0)], [edge(1, 0, truth)])
    found = solution.poses[1]
    assert np.allclose(found.apply(np.eye(3)), truth.apply(np.eye(3)))


def test_edges_are_followed_against_their_direction() -> None:
    truth = random_sim3(np.random.default_rng(10))
    found = solve([(np.zeros(3), 1.0)] * 2, [edge(0, 1, truth)]).poses[1]
    assert np.allclose(found.apply(np.eye(3)), truth.inverse().apply(np.eye(3)))


def test_the_tree_starts_from_the_best_evidence() -> None:
    """Without loops to decide, of two ways to a member the one with more inliers counts."""
    shift = Sim3(1.0, np.eye(3), np.array([1.0, 0, 0]))
    edges = [edge(1, 0, shift, 50), edge(2, 1, shift, 50)]
    found = solve([(np.zeros(3), 1.0)] * 3, edges).poses[2]
    assert found.translation == pytest.approx([2.0, 0, 0])


def test_members_without_a_connection_are_reported() -> None:
    shift = Sim3(1.0, np.eye(3), np.array([1.0, 0, 0]))
    solution = solve([(np.zeros(3), 1.0)] * 6, [edge(2, 1, shift), edge(4, 2, shift)])
    assert solution.components == ((1, 2, 4), (0,), (3,), (5,))
    assert solution.members == (1, 2, 4)
    assert [pose.translation[0] for pose in solution.poses] == pytest.approx([0, 0, 1, 0, 2, 0])


def test_two_parts_have_a_frame_each() -> None:
    rng = np.random.default_rng(11)
    one, other = random_sim3(rng), random_sim3(rng)
    solution = solve([(np.zeros(3), 1.0)] * 5, [edge(2, 0, one), edge(3, 1, other)])
    assert solution.components == ((0, 2), (1, 3), (4,))
    for member, truth in ((0, None), (2, one), (1, None), (3, other), (4, None)):
        expected = (truth or Sim3.identity()).apply(np.eye(3))
        assert np.allclose(solution.poses[member].apply(np.eye(3)), expected)


def test_components_of_no_edges() -> None:
    assert components(2, []) == ((0,), (1,))


def test_an_edge_without_transform_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="no transform"):
        solve([(np.zeros(3), 1.0)] * 2, [Edge(1, 0, 5, 0, 0.0, 0.0, None)])


@pytest.mark.parametrize("seed", [15, 48])
def test_a_member_that_a_wrong_edge_holds_is_put_where_its_right_ones_agree(seed: int) -> None:
    """Of 60 edges 18 are wrong; one member has two right edges and is held by a wrong one."""
    survey = ring(seed, 18)
    solution = solve(survey.extents, survey.edges)
    assert set(solution.rejected) == survey.wrong
    assert survey.worst_m(solution) < 0.2


def test_where_one_pair_stands_against_one_neither_is_taken() -> None:
    """Members 0 to 3 in loops; member 4 has a right and a wrong pair with them."""
    rng = np.random.default_rng(12)
    poses = [random_sim3(rng) for _ in range(5)]
    held = [(0, 1), (1, 2), (2, 3), (0, 3), (0, 2), (3, 4)]
    edges = [edge(j, i, poses[i].inverse() @ poses[j], 40) for i, j in held]
    edges += [edge(4, 1, random_sim3(rng), 400), edge(3, 1, random_sim3(rng), 400)]
    extents = [(np.zeros(3), 8.0 / pose.scale) for pose in poses]
    solution = solve(extents, edges)
    assert solution.components == ((0, 1, 2, 3), (4,))
    assert solution.rejected == (5, 6, 7)
    assert solution.undecided == {5, 6}  # 7 is wrong: the loops of its own part say so
    sure = solve(extents, edges, sure=[5])
    assert sure.members == (0, 1, 2, 3, 4)
    assert sure.rejected == (6, 7)
    assert not sure.undecided


def test_of_a_loop_that_does_not_close_no_pair_is_taken() -> None:
    """Any of the three may be the wrong one; those that need no loop stay."""
    shift = Sim3(1.0, np.eye(3), np.array([1.0, 0, 0]))
    edges = [edge(1, 0, shift, 300), edge(2, 1, shift, 300), edge(2, 0, shift, 20)]
    alone = solve([(np.zeros(3), 1.0)] * 3, edges)
    assert alone.components == ((0,), (1,), (2,))
    assert alone.undecided == {0, 1, 2}
    sure = solve([(np.zeros(3), 1.0)] * 3, edges, sure=[0, 1])
    assert sure.members == (0, 1, 2)
    assert sure.rejected == (2,)


@pytest.mark.parametrize(("seed", "share", "apart"), [(48, 0.3, 0), (66, 0.3, 1), (94, 0.1, 1)])
def test_graphs_that_a_wrong_pair_held_together(seed: int, share: float, apart: int) -> None:
    """In the first a wrong pair held half of the ring against five right ones; in the others a
    member that has at most one right pair."""
    poses, edges, bad = loops(seed, 20, 3 if share > 0.2 else 2, share)
    solution = solve([(np.zeros(3), 8.0 / pose.scale) for pose in poses], edges)
    assert bad <= set(solution.rejected)
    assert len(set(solution.rejected) - bad) <= apart
    assert len(solution.components) == 1 + apart


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=14))
def test_a_bridge_is_what_the_parts_fall_apart_without(ends: list[tuple[int, int]]) -> None:
    edges = [Edge(i, j, 0, 0, 0.0, 0.0, None) for i, j in ends if i != j]
    every = range(len(edges))
    whole = len(components(8, edges))
    without = {k for k in every if len(components(8, edges[:k] + edges[k + 1 :])) > whole}
    assert bridges(edges, every) == without
