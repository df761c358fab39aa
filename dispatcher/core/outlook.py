"""When everything will be done, with an interval: the forecast played several times. Pure.

One run with the likely seconds of every stage, and some futures in which each is drawn from its
Span. The interval reaches from the earliest to the latest of n futures, so that one more would
fall within it with probability (n - 1) / (n + 1): for equally likely futures each rank is as
likely as any other. It knows of no faults and of no host that comes or goes.

Where there is too much work to play every future, the likely run is stretched instead: the time
a job waits by the ratio of drawn to likely seconds of all that has ended by then, while its own
stages take what was drawn. What many stages do together is met well by that; it leaves out that
the last of several takes longer than each, which weighs little in a long queue.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from dispatcher.core.forecast import Seconds, play
from dispatcher.core.forecast_result import Decided, Played, Ran
from dispatcher.core.model import SETTLED, Job, Waiting
from dispatcher.core.need import Need, Span
from dispatcher.core.snapshot import Snapshot
from dispatcher.core.views import GpuView

DRAWS = 9  # an interval of 8 in 10
MOST_JOBS = 3000  # more take too long to play ahead while somebody waits for an answer
STAGES_PLAYED = 4000  # about half a second of CPU


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
    at_once: frozenset[str]  # jobs that the next decision gives a host or starts a stage of
    waiting: tuple[Waiting, ...]  # after the next decision
    left: tuple[Waiting, ...]
    draws: int
    whole: bool  # else of so many jobs only the next decision is known, and no end

    @property
    def share(self) -> float:
        """How probable it is that an end falls within its interval."""
        return max(0, self.draws - 1) / (self.draws + 1)


def quantile(span: Span, share: float) -> float:
    """Seconds that a `share` (0 to 1) of the runs stay below.

    Between the tenth (`low`), the half (`likely`) and nine tenths (`high`) the logarithm is
    linear, and beyond them it goes on with the same slope: durations are skewed and never
    negative.
    """
    likely, shorter, longer = _slopes(span.low, span.likely, span.high)
    return math.exp(likely + (share - 0.5) * (shorter if share < 0.5 else longer))


@lru_cache(maxsize=4096)
def _slopes(*seconds: float) -> tuple[float, float, float]:
    low, likely, high = (math.log(max(1e-6, one)) for one in seconds)
    return likely, (likely - low) / 0.4, (high - likely) / 0.4


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


def look_ahead(snapshot: Snapshot, *, draws: int = DRAWS) -> Outlook:
    """`draws`: futures beside the likely one; two or more make an interval."""
    trace: list[Decided] = []
    whole = sum(job.state not in SETTLED for job in snapshot.jobs) <= MOST_JOBS
    if not whole:
        draws = 0
    first = play(snapshot, trace=trace, until=math.inf if whole else -math.inf)
    settled = {job.id for job in snapshot.jobs if job.state in SETTLED}
    ends = [first.ended]
    for seed in range(draws):
        if len(first.ran) * draws <= STAGES_PLAYED:
            ends.append(play(snapshot, seconds=drawn(seed)).ended)
        else:
            ends.append(stretched(first, drawn(seed), snapshot.now))
    open_jobs = {name: job for name, job in first.jobs.items() if name not in settled}
    runs = [{name: end for name, end in run.items() if name in open_jobs} for run in ends]
    surveys = [_last_ends(open_jobs, run) for run in runs]
    return Outlook(
        now=snapshot.now,
        jobs=_etas(runs),
        acquisitions=_etas(surveys),
        end=_etas([{"": max(ends.values())} if ends else {} for ends in runs]).get(""),
        begins=first.began,
        stage_ends=_stage_ends(snapshot, first),
        decisions=tuple(trace),
        at_once=frozenset(one.job for one in trace[: first.first]),
        waiting=first.waiting,
        left=first.left,
        draws=draws,
        whole=whole,
    )


def _stage_ends(snapshot: Snapshot, run: Played) -> dict[str, float]:
    running = {job.id: job.attempt for job in snapshot.jobs if job.reservation is not None}
    return {r.job.id: r.end for r in run.ran if running.get(r.job.id) == r.job.attempt}


def stretched(run: Played, seconds: Seconds, now: float) -> dict[str, float]:
    """When each job of the run would end if its stages took `seconds`; see above."""
    likely = taken = 0.0
    times, ratios = [-math.inf], [1.0]
    own: dict[str, list[tuple[Ran, float]]] = {}
    for ran in sorted(run.ran, key=lambda ran: ran.end):
        length, span = ran.end - ran.begin, ran.need.seconds.likely
        took = length * seconds(ran.job, ran.gpu, ran.need) / span if span > 0 else length
        likely, taken = likely + length, taken + took
        times.append(ran.end)
        ratios.append(taken / likely if likely > 0 else 1.0)
        own.setdefault(ran.job.id, []).append((ran, took))

    def moved(at: float) -> float:
        return (at - now) * ratios[bisect_right(times, at) - 1]

    ends = dict(run.ended)
    for job in own.keys() & ends.keys():
        since, end = now, now
        for ran, took in own[job]:
            end += max(0.0, moved(ran.begin) - moved(since)) + took
            since = ran.end
        ends[job] = end + ends[job] - since
    return ends


def _last_ends(jobs: Mapping[str, Job], ends: Mapping[str, float]) -> dict[str, float]:
    """By acquisition; one of which a job waits for ever has no end."""
    last: dict[str, float] = {}
    for job in jobs.values():
        end = ends.get(job.id, math.inf)
        last[job.acquisition] = max(end, last.get(job.acquisition, 0.0))
    return {name: end for name, end in last.items() if math.isfinite(end)}


def _etas(runs: Sequence[Mapping[str, float]]) -> dict[str, Eta]:
    """The first run is the likely one."""
    found = {}
    for name, likely in runs[0].items():
        ends = [run[name] for run in runs if name in run]
        found[name] = Eta(low=min(ends), likely=likely, high=max(ends))
    return found
