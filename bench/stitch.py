"""Stitches that are right, or refused: `python -m bench.stitch [--json] [--full]`

Two vehicles film a made-up seabed (bench/seabed.py): reef, sand, flat. Fragments are windows of
their legs that share no frame, each in a frame of its own (any rotation, scale 0.3 to 3), with
10 % floaters. By themselves they are registered from their sidecars (`cosma`), as clouds of 200,000
coloured points from what a camera above them sees (`cosma_ply_only`), and as the same clouds by
Open3D (FPFH, RANSAC with scale, ICP with scale; both clouds brought to one size before) and
KISS-Matcher (over 11 scales), where these are installed (the extra `bench`).

Right: rotation < 2 degrees, translation at the fragment's middle < 2 % of the target's extent,
scale < 2 %. An edge counts as solved when it is right and was accepted. Names, by method:

success_rate.M       solved, of pairs that share 30 to 50 % of the smaller one's ground: that which
                     two of its frames or more saw
low_overlap_rate.M   solved, of pairs that share 7 to 20 %
false_accepts.M      accepted and not right, of all pairs above and of the negatives: places of the
                     same seabed of which no frame saw a common part, and other seabeds; with --full
                     also a mat, the same pattern every 0.6 m, of which places differ by its dirt
negatives.M          how many there were, of some fragments each with each
false_accept_bound.M the share of such negatives that is accepted at most, at 95 %, were each drawn
                     by itself (3 / negatives where none was; they share fragments: the true one is
                     wider)
negative_inliers.M   the most that one of these had
rotation_deg.cosma, translation.cosma, scale.cosma   medians of what was accepted
cpu_s_median.M       a pair; for clouds with drawing both
bent_refused.cosma   pairs refused of which one is bent by 0.3 m over half its length, at 2 m depth
graph_*              20 fragments in loops, 10 % and 30 % wrong edges, 20 graphs each; an edge that
                     the graph leaves undecided counts as found, or as a false reject
candidates_*         1,000 segments (a part: 200) in tracks side by side, without GPS: CPU-s to
                     choose pairs, how many, and the share found of neighbours on two tracks
"""

from __future__ import annotations

import importlib.util
import itertools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pycolmap
from scipy.stats import beta

from bench.many_members import crowd, graphs
from bench.results import Result, parser, show, told
from bench.rivals import kiss_matcher_pair, open3d_pair
from bench.seabed import (
    GROUNDS,
    KINDS,
    VEHICLES,
    Fragment,
    Seabed,
    Shot,
    cloud,
    covered,
    fragment,
    overlap,
    track,
)
from stitch.raster import View, register_views, view
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
    places: int  # negatives: each with each of these that shares no ground with it
    strangers: int  # and with each of these on either of two other seabeds
    stranger_frames: int
    high_clouds: int  # of the above, as clouds, too
    low_clouds: int
    place_clouds: int
    rivals: int
    bent: int


PART = Size(
    frames=13, high=8, low=4, places=5, strangers=1, stranger_frames=8, high_clouds=1,
    low_clouds=1, place_clouds=1, rivals=1, bent=2,
)  # fmt: skip
FULL = Size(
    frames=34, high=30, low=30, places=14, strangers=5, stranger_frames=16, high_clouds=30,
    low_clouds=6, place_clouds=9, rivals=3, bent=20,
)  # fmt: skip


@dataclass(slots=True)
class Score:
    """Of one method; errors are of accepted edges that are right."""

    solved: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    false_accepts: int = 0
    negatives: list[int] = field(default_factory=list)  # inliers of each
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

    def bound(self) -> float:
        """Clopper and Pearson's, one-sided; false accepts among the positives count, too."""
        count = max(len(self.negatives), 1)
        return float(beta.ppf(0.95, self.false_accepts + 1, max(count - self.false_accepts, 1)))

    def add(self, other: Score) -> None:
        for group, solved in other.solved.items():
            self.solved[group] += solved
        self.false_accepts += other.false_accepts
        self.negatives += other.negatives
        self.errors += other.errors
        self.cpu_s += other.cpu_s


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
            frames = 2 if shared[1] > 0 else 1
            common = overlap(*(covered(self.shots(w), frames) for w in (one, other)))
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
    """One kind of seabed, in a process of its own."""

    def __init__(self, number: int, size: Size) -> None:
        self.number, self.size = number, size
        self.scores: dict[str, Score] = {}
        self.bent: list[bool] = []
        self.rng = np.random.default_rng(11 + number)
        self.rivals: dict[str, Callable[[Any, Any], Sim3 | None]] = {}
        if importlib.util.find_spec("open3d"):
            self.rivals["open3d"] = open3d_pair
        if importlib.util.find_spec("kiss_matcher"):
            self.rivals["kiss_matcher"] = kiss_matcher_pair

    def run(self) -> Bench:
        pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value
        kind, next_kind = (GROUNDS[(self.number + step) % len(GROUNDS)] for step in (0, 1))
        here = survey(kind, 1, self.size.frames)
        frames = self.size.stranger_frames
        strangers = (survey(kind, 2, frames, 1), survey(next_kind, 3, frames, 1))
        if kind in KINDS:
            self._positives(here, "high", HIGH, self.size.high, self.size.high_clouds)
            self._positives(here, "low", LOW, self.size.low, self.size.low_clouds)
            self._bent(here)
        self._negatives(here, strangers)
        done = {name: len(score.cpu_s) for name, score in self.scores.items()}
        print(f"  {kind}: {done} pairs", file=sys.stderr, flush=True)
        return self

    def _positives(
        self, here: Survey, group: str, shared: Range, count: int, as_clouds: int
    ) -> None:
        kind = here.seabed.kind
        for number, (one, other) in enumerate(here.pairs(shared, count, self.rng)):
            target, source = (fragment(here.shots(w), self.rng) for w in (one, other))
            truth = Truth(source, target)
            edge, accepted = self._sidecars(source, target)
            self._score("cosma").positive(group, kind, edge.sim3, accepted, truth)
            if number >= as_clouds:
                continue
            clouds = [self._cloud(here.seabed, f) for f in (source, target)]
            edge, accepted = self._clouds(*clouds)
            self._score("cosma_ply_only").positive(group, kind, edge.sim3, accepted, truth)
            if number >= self.size.rivals or group != "high":
                continue
            for name, rival in self.rivals.items():
                began = time.process_time()
                sim3 = rival(clouds[0][0], clouds[1][0])
                self._score(name).cpu_s.append(time.process_time() - began)
                self._score(name).positive(group, kind, sim3, sim3 is not None, truth)

    def _negatives(self, here: Survey, strangers: Sequence[Survey]) -> None:
        wanted = [(here, k % len(here.legs)) for k in range(self.size.places)]
        wanted += [(other, 0) for other in strangers for _ in range(self.size.strangers)]
        seen = [(where, where.window(leg, self.rng)) for where, leg in wanted]
        made = [fragment(where.shots(window), self.rng) for where, window in seen]
        drawn: list[View | None] = [
            view(*self._cloud(where.seabed, fragment))
            if k < self.size.place_clouds or k >= self.size.places
            else None
            for k, ((where, _), fragment) in enumerate(zip(seen, made, strict=True))
        ]
        for i, j in itertools.combinations(range(len(seen)), 2):
            if i >= self.size.places:
                continue
            shots = [where.shots(window) for where, window in (seen[i], seen[j])]
            if seen[i][0] is seen[j][0] and overlap(*(covered(each, 1) for each in shots)) > 0:
                continue
            self._negative("cosma", *self._sidecars(made[j], made[i]))
            one, other = drawn[i], drawn[j]
            if one is not None and other is not None:
                edge = register_views(1, other, 0, one, RATIO)
                self._negative("cosma_ply_only", edge, judge(edge, THRESHOLDS).accepted)

    def _negative(self, name: str, edge: Edge, accepted: bool) -> None:
        self._score(name).negatives.append(edge.inliers)
        self._score(name).false_accepts += accepted

    def _bent(self, here: Survey) -> None:
        for one, other in here.pairs((0.4, 1.0), self.size.bent, self.rng):
            target = fragment(here.shots(one), self.rng)
            source = fragment(here.shots(other), self.rng, bend_m=0.3)
            self.bent.append(not self._sidecars(source, target)[1])

    def _sidecars(self, source: Fragment, target: Fragment) -> tuple[Edge, bool]:
        began = time.process_time()
        edge = register(1, source.sidecar, 0, target.sidecar, RATIO)
        accepted = judge(edge, THRESHOLDS).accepted
        self._score("cosma").cpu_s.append(time.process_time() - began)
        return edge, accepted

    def _clouds(self, source: Cloud, target: Cloud) -> tuple[Edge, bool]:
        began = time.process_time()
        edge = register_views(1, view(*source), 0, view(*target), RATIO)
        accepted = judge(edge, THRESHOLDS).accepted
        self._score("cosma_ply_only").cpu_s.append(time.process_time() - began)
        return edge, accepted

    def _cloud(self, seabed: Seabed, made: Fragment) -> Cloud:
        count = int(POINTS * self.rng.uniform(0.5, 1.0))
        return cloud(seabed, made.covers, made.frame, count, self.rng)

    def _score(self, name: str) -> Score:
        return self.scores.setdefault(name, Score())

    def add(self, other: Bench) -> None:
        for name, score in other.scores.items():
            self._score(name).add(score)
        self.bent += other.bent

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
                told(f"false_accepts.{name}", score.false_accepts, "", 0 if ours else None),
                told(f"negatives.{name}", len(score.negatives), "", None, "higher"),
                told(f"false_accept_bound.{name}", score.bound(), "at 95 %", None),
                told(f"negative_inliers.{name}", max(score.negatives, default=0), "", None),
                told(
                    f"cpu_s_median.{name}", statistics.median(score.cpu_s), "s",
                    1.0 if name == "cosma" else None,
                ),
            ]  # fmt: skip
        columns = zip(*self.scores["cosma"].errors, strict=True)
        limits = (("rotation_deg", 0.2), ("translation", 0.001), ("scale", 0.001))
        for (name, limit), column in zip(limits, columns, strict=True):
            found.append(told(f"{name}.cosma", statistics.median(column), "", limit))
        bent, of = statistics.mean(self.bent), f"of {len(self.bent)}"
        found.append(told("bent_refused.cosma", bent, of, None, "higher"))
        return found


def many_members(full: bool) -> list[Result]:
    return graphs(20) + crowd() if full else graphs(5) + crowd(5, 40)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--full", action="store_true", help="every pair; some minutes")
    given = options.parse_args()
    pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value
    size = FULL if given.full else PART
    grounds = range(len(GROUNDS) if given.full else len(KINDS))
    with ProcessPoolExecutor(len(grounds) + 1) as pool:  # more than two: they end by and by
        many = pool.submit(many_members, given.full)
        first, *others = pool.map(Bench.run, [Bench(k, size) for k in grounds])
        for other in others:
            first.add(other)
        results = first.results() + many.result()
    return show("stitch", results, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
