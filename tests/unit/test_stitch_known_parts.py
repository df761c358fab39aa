"""A part of a stitch that no late segment touches is not solved again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stitch import known_parts, posegraph
from stitch.earlier_poses import Earlier
from stitch.known_edges import code_of
from stitch.known_parts import Solved
from stitch.priors import Readings
from stitch.register import Edge
from stitch.sim3 import Sim3
from tests.stitch_world import edge, noisy, random_sim3
from worker_agent.stages.stitch_world import fit

SIZE, COUNT = 8.0, 11
TRACK = np.array([[x, y, 2.0] for x in np.linspace(-3, 3, 6) for y in (-1.0, 1.0)])


class Survey:
    """Members 0 to 5 hang together, 6 to 9 apart from them; 10 comes late to these."""

    def __init__(self, seed: int = 1) -> None:
        self.rng = np.random.default_rng(seed)
        self.truth = [
            Sim3(1.0, np.eye(3), np.array([4.0 * k, 0.0, 0.0])) @ random_sim3(self.rng)
            for k in range(COUNT)
        ]
        self.contents = [f"sha-{k}" for k in range(COUNT)]
        self.extents, self.readings = [], []
        for k, pose in enumerate(self.truth):
            back, at = pose.inverse(), np.array([4.0 * k, 0.0, 0.0])
            self.extents.append((back.apply(at[None])[0], SIZE / pose.scale))
            fixes = TRACK + at + 0.3 * self.rng.normal(size=TRACK.shape)
            down = pose.rotation.T @ np.array([0.0, 0.0, -1.0])
            self.readings.append(Readings(back.apply(TRACK + at), fixes, down, 0.01))
        self.edges = [self.edge(k + 1, k) for k in (0, 1, 2, 3, 4, 6, 7, 8)]
        self.edges += [self.edge(k + 2, k) for k in (0, 1, 2, 3, 6, 7)]
        # One that its part finds wrong, and a member that it and a right one contend for.
        self.edges += [edge(4, 1, random_sim3(self.rng), 20), edge(6, 8, random_sim3(self.rng), 30)]
        self.late = [self.edge(10, 9), self.edge(10, 8)]

    def edge(self, source: int, target: int) -> Edge:
        seen = self.truth[target].inverse() @ self.truth[source]
        return edge(source, target, noisy(self.rng, seen, SIZE / self.truth[source].scale))

    def solve(
        self,
        edges: Sequence[Edge],
        *,
        count: int = COUNT,
        sure: Sequence[int] = (),
        earlier: Sequence[Earlier] = (),
        known: Mapping[str, Any] | None = None,
    ) -> Solved:
        return known_parts.solve(
            self.contents[:count], self.extents[:count], edges, sure, self.readings[:count], fit,
            earlier, json.loads(json.dumps(known or {})),
        )  # fmt: skip

    def earlier(self, solved: Solved) -> list[Earlier]:
        """As the report tells it."""
        solution, frames = solved.standing.placed.solution, solved.standing.frames
        return [
            Earlier(self.contents[frame], {self.contents[i]: solution.poses[i] for i in group})
            for group, frame in zip(solution.components, frames, strict=True)
        ]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[Edge]]:
    """The edges of every graph that is solved."""
    graphs: list[list[Edge]] = []
    really = posegraph.solve

    def told(extents: Any, edges: Sequence[Edge], sure: Any = ()) -> posegraph.Solution:
        graphs.append(list(edges))
        return really(extents, edges, sure)

    monkeypatch.setattr(posegraph, "solve", told)
    return graphs


def numbers(pose: Sim3) -> list[Any]:
    return [pose.scale, pose.rotation.tolist(), pose.translation.tolist()]


def test_a_late_segment_has_only_its_own_part_solved_again(asked: list[list[Edge]]) -> None:
    survey = Survey()
    first = survey.solve(survey.edges, count=10)
    assert (first.reused, len(first.parts), asked) == (0, 2, [survey.edges])
    before = first.standing.placed.solution
    wrong = [k for k, e in enumerate(survey.edges) if (e.source, e.target) in ((4, 1), (6, 8))]
    assert set(wrong) <= set(before.rejected)
    second = survey.solve(
        [*survey.edges, *survey.late], earlier=survey.earlier(first), known=first.parts
    )
    assert second.reused == 1
    assert {i for e in asked[1] for i in (e.source, e.target)} == {6, 7, 8, 9, 10}
    after = second.standing.placed.solution
    assert after.components[0] == before.components[0] == tuple(range(6))
    assert {10, 9} <= set(after.components[1])
    for i in range(6):
        assert numbers(after.poses[i]) == numbers(before.poses[i])
    assert set(range(6)) <= second.standing.members
    assert set(wrong) <= set(after.rejected)
    # What is not touched says as much of the world as before.
    placed, then = second.standing.placed, first.standing.placed
    assert placed.world is not None and then.world is not None
    assert np.allclose(placed.world.sim3.translation, then.world.sim3.translation, atol=0.05)
    assert placed.position_residual_m == pytest.approx(then.position_residual_m, rel=0.1)


def test_with_nothing_new_nothing_is_solved(asked: list[list[Edge]]) -> None:
    survey = Survey(2)
    first = survey.solve(survey.edges)
    again = survey.solve(survey.edges, earlier=survey.earlier(first), known=first.parts)
    one, other = (s.standing.placed.solution for s in (first, again))
    assert (again.reused, asked[1]) == (2, [])
    assert [numbers(p) for p in one.poses] == [numbers(p) for p in other.poses]
    assert (one.components, one.rejected, one.undecided) == (
        other.components, other.rejected, other.undecided,
    )  # fmt: skip
    assert first.standing.frames == again.standing.frames
    assert again.standing.members >= {i for group in other.components[:2] for i in group}
    assert again.parts == first.parts


def test_a_part_keeps_its_frame_when_a_member_comes_before_it() -> None:
    """Numbers change with every member that comes; contents do not."""
    survey = Survey(3)
    first = survey.solve(survey.edges, count=10)
    for each in (survey.contents, survey.extents, survey.readings):
        each.insert(0, each[-1])  # type: ignore[attr-defined]
    survey.contents[0] = "sha-another"
    moved = [replace(e, source=e.source + 1, target=e.target + 1) for e in survey.edges]
    again = survey.solve(moved, known=first.parts, earlier=survey.earlier(first))
    assert again.reused == 2
    one, other = (s.standing.placed.solution for s in (first, again))
    assert [numbers(p) for p in one.poses] == [numbers(p) for p in other.poses[1:11]]
    assert again.standing.frames[0] == first.standing.frames[0] + 1


@pytest.mark.parametrize("change", ["a pair", "a pair's transform", "an operator", "a sidecar"])
def test_what_has_changed_is_solved(change: str, asked: list[list[Edge]]) -> None:
    survey = Survey(4)
    first = survey.solve(survey.edges)
    edges, sure = list(survey.edges), list[int]()
    if change == "a pair":
        edges = edges[1:]
    elif change == "a pair's transform":
        edges[0] = survey.edge(edges[0].source, edges[0].target)
    elif change == "an operator":
        sure = [0]
    else:
        survey.contents[0] = "sha-made-anew"
    again = survey.solve(edges, sure=sure, known=first.parts)
    assert again.reused == 1
    assert {i for e in asked[1] for i in (e.source, e.target)} == set(range(6))


def test_with_other_code_a_part_is_solved_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    survey = Survey(5)
    first = survey.solve(survey.edges)
    assert {"posegraph", "priors", "earlier_poses"} <= set(code_of("known_parts"))
    monkeypatch.setattr(known_parts, "code_of", lambda entry: code_of(entry) | {"priors": b""})
    assert survey.solve(survey.edges, known=first.parts).reused == 0
