"""Stitches that are right, or refused: `python -m bench.stitch [--json] [--full]`

Two vehicles film a made-up seabed (bench/seabed.py): reef, sand, flat. Fragments are windows of
their legs that share no frame, each in a frame of its own (any rotation, scale 0.3 to 3), with
10 % floaters. By themselves they are registered from their sidecars (`cosma`), as clouds of 200,000
coloured points from what a camera above them sees (`cosma_ply_only`), and as the same clouds by
Open3D (FPFH, RANSAC with scale, ICP with scale; both clouds brought to one size before) and
KISS-Matcher (over 11 scales), where these are installed (the extra `bench`).

Right: rotation < 2 degrees, translation at the fragment's middle < 2 % of the target's extent,
scale < 2 %. An edge counts as solved when it is right and was accepted. Names, by method:

success_rate.M       solved, of pairs that share 30 to 50 % of the smaller one's ground
low_overlap_rate.M   solved, of pairs that share 7 to 20 %
false_accepts.M      accepted and not right, of all pairs above and of the negatives: other places
                     of the same seabed, and other seabeds
negatives.M          how many there were
rotation_deg.cosma, translation.cosma, scale.cosma   medians of what was accepted
cpu_s_median.M       a pair; for clouds with drawing both
bent_refused.cosma   pairs refused of which one is bent by 0.3 m over half its length, at 2 m depth
graph_*              20 fragments in loops, 10 % and 30 % wrong edges, 20 graphs each
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pycolmap
from scipy.spatial.transform import Rotation

from bench.results import Result, parser, show
from bench.rivals import kiss_matcher_pair, open3d_pair
from bench.seabed import (
    KINDS,
    VEHICLES,
    Fragment,
    Seabed,
    Shot,
    cloud,
    covered,
    fragment,
    overlap,
    random_frame,
    track,
)
from stitch.posegraph import solve
from stitch.raster import register_views, view
from stitch.register import Edge, register
from stitch.score import Thresholds, judge
from stitch.sim3 import Sim3

THRESHOLDS = Thresholds(min_inliers=12, min_share=0.2, min_hull_share=0.1)
RATIO = 0.85
POINTS = 200_000
HIGH, LOW, NONE = (0.3, 0.5), (0.07, 0.2), (0.0, 0.0)
Range = tuple[float, float]
Window = tuple[int, int, int]  # track, first frame, end


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Per kind of seabed."""

    frames: int  # of each leg
    high: int
    low: int
    elsewhere: int  # negatives on the same seabed
    strangers: int  # negatives of two seabeds
    clouds: int  # of the above, each as clouds, too
    rivals: int
    bent: int


PART = Size(frames=15, high=12, low=6, elsewhere=8, strangers=8, clouds=2, rivals=1, bent=4)
FULL = Size(frames=34, high=30, low=30, elsewhere=36, strangers=36, clouds=15, rivals=5, bent=20)


@dataclass(slots=True)
class Score:
    """Of one method; errors are of accepted edges that are right."""

    solved: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    false_accepts: int = 0
    negatives: int = 0
    errors: list[tuple[float, float, float]] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def positive(
        self, group: str, kind: str, sim3: Sim3 | None, accepted: bool, truth: Truth
    ) -> None:
        error = truth.errors(sim3)
        right = error[0] < 2.0 and error[1] < 0.02 and error[2] < 0.02
        for name in (group, f"{group}.{kind}"):
            self.solved[name].append(accepted and right)
        self.false_accepts += accepted and not right
        if accepted and right:
            self.errors.append(error)


@dataclass(frozen=True, slots=True)
class Truth:
    source: Fragment
    target: Fragment

    def errors(self, sim3: Sim3 | None) -> tuple[float, float, float]:
        """Degrees, share of the extent, logarithm of the scale."""
        if sim3 is None:
            return 180.0, 9.0, 9.0
        truth = self.target.frame.inverse() @ self.source.frame
        centre, _ = self.source.sidecar.extent()
        _, extent = self.target.sidecar.extent()
        off = np.linalg.norm(sim3.apply(centre[None]) - truth.apply(centre[None])) / extent
        return sim3.angle_to(truth), float(off), abs(float(np.log(sim3.scale / truth.scale)))


@dataclass(frozen=True, slots=True)
class Survey:
    seabed: Seabed
    legs: list[list[Shot]]

    def shots(self, window: Window) -> list[Shot]:
        leg, first, end = window
        return self.legs[leg][first:end]

    def pairs(
        self, shared: Range, count: int, rng: np.random.Generator
    ) -> Iterator[tuple[Window, Window]]:
        """Windows of two legs whose common ground is in the range."""
        found = 0
        for _ in range(20_000):
            legs = rng.choice(len(self.legs), 2, replace=False)
            one, other = (self.window(int(leg), rng) for leg in legs)
            common = overlap(covered(self.shots(one)), covered(self.shots(other)))
            if shared[0] <= common <= shared[1]:
                found += 1
                yield one, other
            if found == count:
                return
        raise RuntimeError(f"{self.seabed.kind}: no pairs that share {shared}")

    def window(self, leg: int, rng: np.random.Generator) -> Window:
        frames = len(self.legs[leg])
        length = int(rng.integers(7, min(17, frames)))
        first = int(rng.integers(0, frames - length + 1))
        return leg, first, first + length


def survey(kind: str, seed: int, frames: int, legs: int = 5) -> Survey:
    """Two legs of the first vehicle side by side, two of the second across them, and one of the
    first far from all of these."""
    seabed = Seabed(kind, seed)
    a, b = VEHICLES
    ways = ((a, 2.0), (a, 3.2), (b, 2.4), (b, 3.6), (a, 6.9))
    made = [track(seabed, v, y, frames, seed * 10 + k) for k, (v, y) in enumerate(ways[:legs])]
    return Survey(seabed, made)


Cloud = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


class Bench:
    def __init__(self, size: Size) -> None:
        self.size = size
        self.scores: dict[str, Score] = defaultdict(Score)
        self.bent: list[bool] = []
        self.rng = np.random.default_rng(11)
        self.rivals: dict[str, Callable[[Any, Any], Sim3 | None]] = {}
        if importlib.util.find_spec("open3d"):
            self.rivals["open3d"] = open3d_pair
        if importlib.util.find_spec("kiss_matcher"):
            self.rivals["kiss_matcher"] = kiss_matcher_pair

    def run(self) -> None:
        with ProcessPoolExecutor(2) as pool:  # drawing is no part of what is measured
            made = [pool.submit(survey, kind, 1, self.size.frames) for kind in KINDS]
            others = [pool.submit(survey, kind, 2, 12, 1) for kind in KINDS]
            surveys, twins = ([one.result() for one in some] for some in (made, others))
        for here in surveys:
            self._positives(here, "high", HIGH, self.size.high)
            self._positives(here, "low", LOW, self.size.low)
            self._bent(here)
            for one, other in here.pairs(NONE, self.size.elsewhere, self.rng):
                self._negative(here, one, here, other)
        for number, here in enumerate(surveys):
            there = surveys[(number + 1) % len(surveys)]
            for k in range(self.size.strangers):
                other = there if k % 2 else twins[number]
                one = here.window(k % len(here.legs), self.rng)
                foreign = other.window(k % len(other.legs), self.rng)
                self._negative(here, one, other, foreign, cloud=k < self.size.clouds)

    def _positives(self, here: Survey, group: str, shared: Range, count: int) -> None:
        kind = here.seabed.kind
        for number, (one, other) in enumerate(here.pairs(shared, count, self.rng)):
            target, source = (fragment(here.shots(w), self.rng) for w in (one, other))
            truth = Truth(source, target)
            edge, accepted = self._sidecars(source, target)
            self.scores["cosma"].positive(group, kind, edge.sim3, accepted, truth)
            if number >= self.size.clouds:
                continue
            clouds = [self._cloud(here.seabed, f) for f in (source, target)]
            edge, accepted = self._clouds(*clouds)
            self.scores["cosma_ply_only"].positive(group, kind, edge.sim3, accepted, truth)
            if number >= self.size.rivals or group != "high":
                continue
            for name, rival in self.rivals.items():
                began = time.process_time()
                sim3 = rival(clouds[0][0], clouds[1][0])
                self.scores[name].cpu_s.append(time.process_time() - began)
                self.scores[name].positive(group, kind, sim3, sim3 is not None, truth)

    def _negative(
        self, here: Survey, one: Window, there: Survey, other: Window, *, cloud: bool = False
    ) -> None:
        target = fragment(here.shots(one), self.rng)
        source = fragment(there.shots(other), self.rng)
        judged = [("cosma", self._sidecars(source, target))]
        if cloud:
            clouds = (self._cloud(there.seabed, source), self._cloud(here.seabed, target))
            judged.append(("cosma_ply_only", self._clouds(*clouds)))
        for name, (_, accepted) in judged:
            self.scores[name].negatives += 1
            self.scores[name].false_accepts += accepted

    def _bent(self, here: Survey) -> None:
        for one, other in here.pairs((0.4, 1.0), self.size.bent, self.rng):
            target = fragment(here.shots(one), self.rng)
            source = fragment(here.shots(other), self.rng, bend_m=0.3)
            self.bent.append(not self._sidecars(source, target)[1])

    def _sidecars(self, source: Fragment, target: Fragment) -> tuple[Edge, bool]:
        began = time.process_time()
        edge = register(1, source.sidecar, 0, target.sidecar, RATIO)
        accepted = judge(edge, THRESHOLDS).accepted
        self.scores["cosma"].cpu_s.append(time.process_time() - began)
        return edge, accepted

    def _clouds(self, source: Cloud, target: Cloud) -> tuple[Edge, bool]:
        began = time.process_time()
        edge = register_views(1, view(*source), 0, view(*target), RATIO)
        accepted = judge(edge, THRESHOLDS).accepted
        self.scores["cosma_ply_only"].cpu_s.append(time.process_time() - began)
        return edge, accepted

    def _cloud(self, seabed: Seabed, made: Fragment) -> Cloud:
        count = int(POINTS * self.rng.uniform(0.5, 1.0))
        return cloud(seabed, made.covers, made.frame, count, self.rng)

    def results(self) -> list[Result]:
        found: list[Result] = []
        for name, score in self.scores.items():
            ours = name.startswith("cosma")
            wanted = {"high": {"cosma": 0.98, "cosma_ply_only": 0.9}, "low": {"cosma": 0.8}}
            for group, solved in score.solved.items():
                which, _, kind = group.partition(".")
                label = {"high": "success_rate", "low": "low_overlap_rate"}[which]
                found.append(
                    Result(
                        name=f"{label}.{name}" + (f".{kind}" if kind else ""),
                        value=statistics.mean(solved), unit=f"of {len(solved)}", better="higher",
                        target=None if kind else wanted[which].get(name),
                    )
                )  # fmt: skip
            found += [
                _told(f"false_accepts.{name}", score.false_accepts, "", 0 if ours else None),
                _told(f"negatives.{name}", score.negatives, "", None, "higher"),
                _told(
                    f"cpu_s_median.{name}", statistics.median(score.cpu_s), "s",
                    1.0 if name == "cosma" else None,
                ),
            ]  # fmt: skip
        columns = zip(*self.scores["cosma"].errors, strict=True)
        limits = (("rotation_deg", 0.2), ("translation", 0.001), ("scale", 0.001))
        for (name, limit), column in zip(limits, columns, strict=True):
            found.append(_told(f"{name}.cosma", statistics.median(column), "", limit))
        bent, of = statistics.mean(self.bent), f"of {len(self.bent)}"
        found.append(_told("bent_refused.cosma", bent, of, None, "higher"))
        return found


def _told(
    name: str, value: float, unit: str, target: float | None, better: str = "lower"
) -> Result:
    return Result(name=name, value=value, unit=unit, better=better, target=target)


def loops(
    seed: int, count: int, reach: int, share: float
) -> tuple[list[Sim3], list[Edge], set[int]]:
    """Fragments of 8 m on a ring, each tied to the next `reach`; a share of the edges is wrong, by
    half an e-fold in scale, any rotation and 8 m; its inliers may be as many as a right one's."""
    rng = np.random.default_rng(seed)
    size = 8.0
    poses = []
    for k in range(count):
        turn = 2 * np.pi * k / count
        place = 30.0 * np.array([np.cos(turn), np.sin(turn), 0.0]) + rng.normal(size=3) * 0.5
        own = random_frame(rng)
        poses.append(Sim3(own.scale, own.rotation, place))
    pairs = [(i, (i + step) % count) for step in range(1, reach + 1) for i in range(count)]
    bad = set(map(int, rng.choice(len(pairs), round(share * len(pairs)), replace=False)))
    edges = []
    for k, (i, j) in enumerate(pairs):
        truth = poses[i].inverse() @ poses[j]
        if k in bad:
            noise = Sim3(
                float(np.exp(rng.normal() * 0.5)),
                Rotation.random(random_state=seed * 1000 + k).as_matrix(),
                rng.normal(size=3) * size / poses[j].scale,
            )
        else:
            noise = Sim3(
                float(np.exp(rng.normal() * 0.005)),
                Rotation.from_rotvec(rng.normal(size=3) * np.radians(0.3)).as_matrix(),
                rng.normal(size=3) * 0.005 * size / poses[j].scale,
            )
        inliers = int(rng.uniform(10, 120) if k in bad else rng.uniform(30, 400))
        edges.append(Edge(j, i, 2 * inliers, inliers, 0.5, 0.004, truth @ noise))
    return poses, edges, bad


def graphs(count: int) -> list[Result]:
    results = []
    for share, reach in ((0.1, 2), (0.3, 3)):
        wrong = found = right = lost = 0
        taken = []
        for seed in range(count):
            poses, edges, bad = loops(seed, 20, reach, share)
            began = time.process_time()
            solution = solve([(np.zeros(3), 8.0 / pose.scale) for pose in poses], edges)
            taken.append(time.process_time() - began)
            rejected = set(solution.rejected)
            wrong, found = wrong + len(bad), found + len(bad & rejected)
            right, lost = right + len(edges) - len(bad), lost + len(rejected - bad)
        tag = f"{share:.0%}".replace("%", "pct")
        results += [
            _told(f"graph_wrong_found.{tag}", found / wrong, f"of {wrong}", 1.0, "higher"),
            _told(f"graph_false_rejects.{tag}", lost / right, f"of {right}", 0.01),
            _told(f"graph_cpu_s_max.{tag}", max(taken), "s", 1.0),
        ]
    return results


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--full", action="store_true", help="every pair; some minutes")
    given = options.parse_args()
    pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value
    bench = Bench(FULL if given.full else PART)
    bench.run()
    results = bench.results() + graphs(20 if given.full else 5)
    return show("stitch", results, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
