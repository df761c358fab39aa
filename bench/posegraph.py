"""Wrong pairs in a graph of 20 members in loops: are they found, and what do priors add?

`python -m bench.posegraph [--json]`

A closed survey: each member meets its next three; 10 and 30 % of the 60 pairs are wrong, of 20
graphs each. Members have gravity and positions (1 m, those of one member 12 m off). Names, with
the share of wrong pairs:

wrong_found[10]       of the wrong pairs, those that the graph does not take: it refuses them, or
                      leaves them undecided
false_rejects[10]     of the right ones, those that it does not take
..._gravity[10]       the same when pairs that gravity contradicts are refused before
graph_cpu_s[10]       the slowest of the 20, priors included
graph_worst_m[10]     the worst placed member of all graphs (with gravity), of a ring 32 m wide
graph_apart[10]       members that are left out of their scene, of all
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import numpy as np

from bench.results import Result, parser, show, told
from stitch.posegraph import Solution, solve
from stitch.priors import Readings, place, tilt
from stitch.register import Edge
from stitch.sim3 import F64, Sim3, umeyama
from tests.stitch_world import edge, noisy, random_sim3
from worker_agent.stages.stitch_world import fit

MEMBERS, GRAPHS, RADIUS_M, SIZE_M = 20, 20, 16.0, 8.0
GPS_M, OFF_M = 1.0, 12.0
TILT = np.radians(10.0)
DOWN = np.array([0.0, 0.0, -1.0])


@dataclass(frozen=True, slots=True)
class Ring:
    places: F64  # (N,3) of the members, metres
    poses: list[Sim3]
    readings: list[Readings]
    extents: list[tuple[F64, float]]
    edges: list[Edge]
    wrong: set[int]

    def worst_m(self, solution: Solution) -> float:
        scene = list(solution.members)
        found = np.concatenate([solution.poses[i].apply(self.extents[i][0][None]) for i in scene])
        back = umeyama(found, self.places[scene])
        return float(np.linalg.norm(back.apply(found) - self.places[scene], axis=1).max())


def ring(seed: int, wrong: int) -> Ring:
    rng = np.random.default_rng(seed)
    turn = 2 * np.pi * np.arange(MEMBERS) / MEMBERS
    places = RADIUS_M * np.stack([np.cos(turn), np.sin(turn), 0 * turn], axis=1)
    poses, readings, extents = [], [], []
    for number, at in enumerate(places):
        pose = Sim3(1.0, np.eye(3), at) @ random_sim3(rng)
        track = np.stack([np.linspace(-4, 4, 16), 0.3 * rng.normal(size=16), np.full(16, 2.0)], 1)
        fixes = at + track + rng.normal(size=3) * GPS_M
        fixes[:, 0] += OFF_M * (number == 3)
        own = pose.inverse()
        poses.append(pose)
        readings.append(Readings(own.apply(at + track), fixes, pose.rotation.T @ DOWN, 0.01))
        extents.append((own.apply(at[None])[0], SIZE_M / pose.scale))
    pairs = [(i, (i + step) % MEMBERS) for step in (1, 2, 3) for i in range(MEMBERS)]
    bad = set(map(int, rng.choice(len(pairs), wrong, replace=False)))
    edges = []
    for k, (i, j) in enumerate(pairs):
        if k in bad:
            edges.append(edge(j, i, random_sim3(rng), int(rng.integers(12, 120))))
        else:
            truth = noisy(rng, poses[i].inverse() @ poses[j], SIZE_M / poses[j].scale)
            edges.append(edge(j, i, truth, int(rng.integers(30, 400))))
    return Ring(places, poses, readings, extents, edges, bad)


def upright(one: Ring) -> list[int]:
    return [
        k
        for k, e in enumerate(one.edges)
        if (tilt(e, one.readings[e.source], one.readings[e.target]) or 0.0) <= TILT
    ]


def measured(share: float) -> list[Result]:
    label, wrong = f"[{100 * share:.0f}]", round(share * 3 * MEMBERS)
    alone, felt = [0, 0], [0, 0]
    slowest, worst, apart = 0.0, 0.0, 0
    for seed in range(GRAPHS):
        one = ring(seed, wrong)
        refused = set(solve(one.extents, one.edges).rejected)
        alone[0] += len(refused & one.wrong)
        alone[1] += len(refused - one.wrong)
        began = time.process_time()
        left = upright(one)
        held = [one.edges[k] for k in left]
        solution = solve(one.extents, held)
        placed = place(solution, one.extents, held, one.readings, fit)
        slowest = max(slowest, time.process_time() - began)
        refused = {left[k] for k in solution.rejected} | (set(range(len(one.edges))) - set(left))
        felt[0] += len(refused & one.wrong)
        felt[1] += len(refused - one.wrong)
        worst = max(worst, one.worst_m(placed.solution))
        apart += MEMBERS - len(placed.solution.members)
    right = GRAPHS * (3 * MEMBERS - wrong)
    rows = []
    for name, (found, false), target in (("", alone, 1.0), ("_gravity", felt, 1.0)):
        rows += [
            Result(
                name=f"wrong_found{name}{label}", value=found / (GRAPHS * wrong), unit="",
                better="higher", target=target,
            ),
            Result(
                name=f"false_rejects{name}{label}", value=false / right, unit="", better="lower",
                target=0.01,
            ),
        ]  # fmt: skip
    return [
        *rows,
        Result(name=f"graph_cpu_s{label}", value=slowest, unit="s", better="lower", target=1.0),
        Result(name=f"graph_worst_m{label}", value=worst, unit="m", better="lower"),
        told(f"graph_apart{label}", apart, f"of {GRAPHS * MEMBERS}", None),
    ]


def main() -> int:
    given = parser(__doc__).parse_args()
    results = [row for share in (0.1, 0.3) for row in measured(share)]
    return show("posegraph", results, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
