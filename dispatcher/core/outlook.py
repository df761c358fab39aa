"""When everything will be done, with an interval: the forecast played several times. Pure.

One run with the likely seconds of every stage, and a few in which each is drawn from its Span.
The interval reaches from the earliest to the latest of n draws, so that one more future would
fall within it with probability (n - 1) / (n + 1): for equally likely futures each rank is as
likely as any other. It knows of no faults and of no host that comes or goes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dispatcher.core.forecast import Decided, Played, Seconds, play
from dispatcher.core.model import SETTLED, Job, Waiting
from dispatcher.core.need import Need, Span
from dispatcher.core.snapshot import Snapshot
from dispatcher.core.views import GpuView

MOST_DRAWS = 9  # an interval of 8 in 10
LEAST_DRAWS = 3  # of 5 in 10
STAGES_PLAYED = 6000  # about a second of CPU: more jobs get fewer draws


@dataclass(frozen=True, slots=True, kw_only=True)
class Eta:
    """Wall-clock Unix seconds; low <= likely <= high."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """A job or an acquisition without an entry never ends as things are; `left` says why."""

    now: float
    jobs: Mapping[str, Eta]  # those that had not settled, and the stitches that will be made
    acquisitions: Mapping[str, Eta]  # the last of their jobs
    end: Eta | None  # of everything that ends; None: nothing does
    begins: Mapping[str, float]  # job -> when its next stage starts in the likely run
    stage_ends: Mapping[str, float]  # job -> when its running stage ends in the likely run
    decisions: tuple[Decided, ...]  # of the likely run
    waiting: tuple[Waiting, ...]  # after the first of them
    left: tuple[Waiting, ...]
    draws: int

    @property
    def at_once(self) -> frozenset[str]:
        """Jobs that the next decision gives a host or starts a stage of."""
        return frozenset(one.job for one in self.decisions if one.at == self.now)

    @property
    def share(self) -> float:
        """How probable it is that an end falls within its interval."""
        return (self.draws - 1) / (self.draws + 1)


def quantile(span: Span, share: float) -> float:
    """Seconds that a `share` (0 to 1) of the runs stay below.

    Between the tenth (`low`), the half (`likely`) and nine tenths (`high`) the logarithm is
    linear, and beyond them it goes on with the same slope: durations are skewed and never
    negative.
    """
    low, likely, high = (math.log(max(1e-6, s)) for s in (span.low, span.likely, span.high))
    slope = (likely - low) / 0.4 if share < 0.5 else (high - likely) / 0.4
    return math.exp(likely + (share - 0.5) * slope)


def chance(key: str) -> float:
    """Evenly from 0 to 1, the same for the same key."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def drawn(seed: int) -> Seconds:
    """Durations of one future, the same whenever they are asked for with the same seed.

    What was never measured is wrong for all jobs alike: a first guess gets one draw for its
    stage on its device, a learned need one for each attempt.
    """

    def seconds(job: Job, gpu: GpuView | None, need: Need) -> float:
        device = gpu.name if gpu is not None else ""
        key = f"{job.id}/{job.attempt}" if need.runs else device
        return quantile(need.seconds, chance(f"{seed}/{job.stage}/{key}"))

    return seconds


def look_ahead(snapshot: Snapshot, *, draws: int | None = None) -> Outlook:
    """`draws` None: as many as a command can wait for."""
    active = sum(job.state not in SETTLED for job in snapshot.jobs)
    if draws is None:
        affordable = STAGES_PLAYED // max(1, 8 * active)
        draws = min(MOST_DRAWS, max(LEAST_DRAWS, affordable))
    trace: list[Decided] = []
    first = play(snapshot, trace=trace)
    others = [play(snapshot, seconds=drawn(seed)) for seed in range(draws)]
    settled = {job.id for job in snapshot.jobs if job.state in SETTLED}
    runs = [_ends(run, settled) for run in (first, *others)]
    surveys = [_last_ends(run, settled) for run in (first, *others)]
    return Outlook(
        now=snapshot.now,
        jobs=_etas(runs),
        acquisitions=_etas(surveys),
        end=_etas([{"": max(ends.values())} if ends else {} for ends in runs]).get(""),
        begins=first.began,
        stage_ends={
            job.id: first.stage_ended[job.id]
            for job in snapshot.jobs
            if job.reservation is not None and job.id in first.stage_ended
        },
        decisions=tuple(trace),
        waiting=first.waiting,
        left=first.left,
        draws=draws,
    )


def _ends(run: Played, settled: set[str]) -> dict[str, float]:
    return {job: end for job, end in run.ended.items() if job not in settled}


def _last_ends(run: Played, settled: set[str]) -> dict[str, float]:
    """By acquisition; one of which a job waits for ever has no end."""
    ends: dict[str, float] = {}
    for job in run.jobs.values():
        if job.id not in settled:
            end = run.ended.get(job.id, math.inf)
            ends[job.acquisition] = max(end, ends.get(job.acquisition, 0.0))
    return {name: end for name, end in ends.items() if math.isfinite(end)}


def _etas(runs: Sequence[Mapping[str, float]]) -> dict[str, Eta]:
    """The first run is the likely one."""
    found = {}
    for name, likely in runs[0].items():
        ends = [run[name] for run in runs if name in run]
        found[name] = Eta(low=min(ends), likely=likely, high=max(ends))
    return found
