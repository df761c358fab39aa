"""A new version of a stitch leaves what did not move where it was, to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from stitch import posegraph
from stitch.earlier_poses import Earlier, Standing, stand
from stitch.priors import Placed, World
from stitch.register import Edge
from stitch.sim3 import Sim3
from tests.stitch_world import edge, noisy, random_sim3

SIZE = 8.0


class Survey:
    """Members in a row, each its own frame; `edge` measures a pair as images do."""

    def __init__(self, seed: int, count: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.truth = [
            Sim3(p.scale, p.rotation, np.array([4.0 * k, 0.0, 0.0]))
            for k, p in enumerate(random_sim3(self.rng) for _ in range(count))
        ]
        self.extents = [(np.zeros(3), SIZE / pose.scale) for pose in self.truth]
        self.contents = [f"sha-{k}" for k in range(count)]

    def edge(self, source: int, target: int, off_m: float = 0.0) -> Edge:
        seen = self.truth[target].inverse() @ self.truth[source]
        size = SIZE / self.truth[source].scale
        slip = Sim3(1.0, np.eye(3), np.array([off_m, 0, 0]) / self.truth[source].scale)
        found = edge(source, target, noisy(self.rng, seen, size) @ slip)
        return replace(found, far_error=0.005)

    def solve(
        self, members: Sequence[int], edges: Sequence[Edge], before: Sequence[Earlier] = ()
    ) -> tuple[Standing, Earlier]:
        number = {member: k for k, member in enumerate(members)}
        own = [replace(e, source=number[e.source], target=number[e.target]) for e in edges]
        extents = [self.extents[m] for m in members]
        contents = [self.contents[m] for m in members]
        solution = posegraph.solve(extents, own)
        world = World(self.truth[members[0]], metric=True)
        found = stand(Placed(solution, world, None, None), contents, extents, own, before)
        poses = dict(zip(contents, found.placed.solution.poses, strict=True))
        return found, Earlier(contents[found.frames[0]], poses)


def same(one: Sim3, other: Sim3) -> bool:
    return (
        one.scale == other.scale
        and bool((one.rotation == other.rotation).all())
        and bool((one.translation == other.translation).all())
    )


def strains(found: Standing, survey: Survey, edges: Sequence[Edge]) -> list[float]:
    """Metres at the middle of each pair's source."""
    poses, middle = found.placed.solution.poses, np.zeros((1, 3))
    apart = [
        (poses[e.target] @ e.sim3).apply(middle) - poses[e.source].apply(middle)
        for e in edges
        if e.sim3 is not None
    ]
    return [float(np.linalg.norm(gap)) * survey.truth[0].scale for gap in apart]


def test_a_late_member_at_the_end_moves_nobody() -> None:
    survey = Survey(1, 6)
    edges = [survey.edge(k + 1, k) for k in range(4)] + [survey.edge(k + 2, k) for k in range(3)]
    _, before = survey.solve(range(5), edges)
    late = [*edges, survey.edge(5, 4), survey.edge(5, 3)]
    found, _ = survey.solve(range(6), late, [before])
    assert found.members == {0, 1, 2, 3, 4}
    for k in range(5):
        assert same(found.placed.solution.poses[k], before.poses[f"sha-{k}"])
    truth = survey.truth[0].inverse() @ survey.truth[5]
    gap = found.placed.solution.poses[5].translation - truth.translation
    assert float(np.linalg.norm(gap)) * survey.truth[0].scale < 0.03 * SIZE
    # Without the version before, the same pairs move what was there, if only by a hair.
    anew, _ = survey.solve(range(6), late)
    assert not anew.members
    assert not same(anew.placed.solution.poses[4], before.poses["sha-4"])


def test_a_loop_that_closes_moves_what_had_drifted_and_leaves_the_rest() -> None:
    survey = Survey(2, 9)
    chain = [survey.edge(k + 1, k) for k in range(7)]
    # From the middle on everything lies 40 cm off, and nothing could tell.
    chain[3] = survey.edge(4, 3, off_m=0.4)
    _, before = survey.solve(range(8), chain)
    late = [*chain, *(survey.edge(8, k) for k in (0, 2, 3, 5, 7)), survey.edge(4, 2),
            survey.edge(5, 3), survey.edge(5, 2)]  # fmt: skip
    found, _ = survey.solve(range(9), late, [before])
    assert {0, 1, 2} <= found.members
    assert not {5, 6, 7} & found.members
    anew, _ = survey.solve(range(9), late)
    good = [e for e in late if e is not chain[3]]
    assert max(strains(found, survey, good)) < max(strains(anew, survey, good)) + 0.04
    for k in found.members:
        assert same(found.placed.solution.poses[k], before.poses[f"sha-{k}"])


def test_a_pair_that_the_old_poses_strain_lets_them_go() -> None:
    """Both lie within their own sigma, which is wide, but not to each other."""
    survey = Survey(5, 3)
    loose, tight = survey.edge(1, 0), survey.edge(2, 1)
    edges = [replace(loose, far_error=0.05), replace(tight, far_error=0.001)]
    _, before = survey.solve(range(3), edges)
    moved = before.poses["sha-1"]
    off = Sim3(moved.scale, moved.rotation, moved.translation + 0.15 / survey.truth[0].scale)
    found, _ = survey.solve(range(3), edges, [Earlier("sha-0", {**before.poses, "sha-1": off})])
    assert found.members == {0}
    assert strains(found, survey, [tight]) == [pytest.approx(0.0, abs=0.02)]
    nearly, _ = survey.solve(range(3), edges, [before])
    assert nearly.members == {0, 1, 2}


def test_the_scene_stays_in_its_frame_when_a_member_comes_first() -> None:
    survey = Survey(3, 4)
    edges = [survey.edge(2, 1), survey.edge(3, 2)]
    _, before = survey.solve([1, 2, 3], edges)
    found, _ = survey.solve([0, 1, 2, 3], [*edges, survey.edge(1, 0)], [before])
    assert (found.frames, found.members) == ((1,), {1, 2, 3})
    assert same(found.placed.solution.poses[1], Sim3.identity())
    # What the scene's frame is to the world has changed with the frame.
    world = found.placed.world
    assert world is not None
    point = np.array([[1.0, 2.0, 3.0]])
    seen = world.sim3.apply(found.placed.solution.poses[0].apply(point))
    assert np.allclose(seen, survey.truth[0].apply(point), atol=1e-9)


def test_a_member_made_anew_is_placed_anew() -> None:
    survey = Survey(4, 4)
    edges = [survey.edge(k + 1, k) for k in range(3)]
    _, before = survey.solve(range(4), edges)
    survey.contents[2] = "sha-of-another-reconstruction"
    found, _ = survey.solve(range(4), edges, [before])
    assert found.members == {0, 1, 3}
    survey.contents[0] = "sha-of-another-frame"  # nothing says any more where the others were
    found, _ = survey.solve(range(4), edges, [before])
    assert (found.frames, found.members) == ((0,), frozenset())
