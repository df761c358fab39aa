"""The real decisions on a virtual clock, for a farm larger than any at hand: what a decision costs,
and how near the plan comes to the least time that any plan could take.

    python -m bench.simulate --hosts 1000 --jobs 100000

GPUs of 12, 24, 48 and 80 GB with speeds of their own, one to four a host; segments of three AUVs a
survey with their stitches; seconds drawn from what was learned; every fiftieth training fails and
is tried again, held or moved as the retry table says.

A round is one decision with everything that the board was told since the last one: what ended,
what began, and a probe of every host each ten seconds. Rounds are counted in CPU seconds of this
process, so that a busy machine does not count. What is told comes in portions, and only so many
jobs at a time are given hosts, as by the dispatcher: the longest stretch is what other work waits.

`--jobs` and `--hosts` are also run a tenth and a hundredth as large: the curve of cost by size.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from bench.results import Result, parser, percentile, show
from bench.simulated_bound import lower_bound_s
from bench.simulated_farm import fault_for, make_snapshot, seconds_for
from dispatcher.core.board import Board
from dispatcher.core.forecast import play
from dispatcher.core.model import Job
from dispatcher.core.place import Placement, Policy
from dispatcher.core.views import HostView
from dispatcher.garbage import keep_unsearched, searched_once
from dispatcher.scheduler import GIVEN, PORTION

PROBE_S = 10.0


class TimedBoard(Board):
    """Counts the CPU of each round: what it was told since the last decision, and the decision."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.rounds_s: list[float] = []
        self.longest_s = 0.0  # of one portion of what it is told, or of one decision
        self._told: list[Job | HostView] = []
        self._shown: dict[str, HostView] = {}
        self._turns: Iterator[str] = iter(())
        self._probed_at: float | None = None

    def put_job(self, job: Job) -> None:
        self._told.append(job)

    def put_host(self, host: HostView) -> None:
        self._shown[host.name] = host
        self._told.append(host)

    def decide(self, now: float, most: int | None = GIVEN) -> Placement:
        self._probe(now)
        stretches = [time.process_time()]
        for number, one in enumerate(self._told):
            if len(self._told) > PORTION and number % PORTION == 0:
                keep_unsearched()
                stretches.append(time.process_time())
            if isinstance(one, Job):
                super().put_job(one)
            else:
                super().put_host(one)
        stretches.append(time.process_time())
        decided = super().decide(now, most)
        if decided.more:
            keep_unsearched()
        stretches.append(time.process_time())
        self.rounds_s.append(stretches[-1] - stretches[0])
        longest_s = max(end - began for began, end in itertools.pairwise(stretches))
        self.longest_s = max(self.longest_s, longest_s)
        self._told.clear()
        return decided

    def _probe(self, now: float) -> None:
        """Each host in turn once in PROBE_S: a new view that says the same but for its age."""
        if self._probed_at is None:
            self._turns = itertools.cycle(list(self._shown))
            self._probed_at = now
        due = min(len(self._shown), int(len(self._shown) * (now - self._probed_at) / PROBE_S))
        if due:
            self._probed_at = now
        for name in itertools.islice(self._turns, due):
            age = 0.5 if self._shown[name].probe_age_s == 0.0 else 0.0
            self.put_host(dataclasses.replace(self._shown[name], probe_age_s=age))


# --- the benchmark ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    hosts: int
    jobs: int
    rounds_ms: list[float]
    longest_ms: float
    ratio: float
    makespan_s: float
    bounds: dict[str, float]
    states: dict[str, int]
    cpu_s: float


def simulate(hosts: int, jobs: int, seed: int, tick_s: float) -> Simulated:
    snapshot = make_snapshot(hosts, jobs, seed)
    board = TimedBoard(snapshot.policy)
    began = time.process_time()
    run = play(
        snapshot,
        seconds=lambda job, _gpu, need: seconds_for(seed, job, need),
        fault=lambda job: fault_for(seed, job),
        tick_s=tick_s,
        board=board,
    )
    cpu_s = time.process_time() - began
    left = [name for name in run.jobs if name not in run.ended]
    assert not left, f"{len(left)} jobs never ended: {run.left[:3]}"
    assert all(job.reservation is None for job in run.jobs.values())
    makespan = max(run.ended.values()) - snapshot.now
    bound, bounds = lower_bound_s(snapshot, run, seed)
    states: dict[str, int] = defaultdict(int)
    for job in run.jobs.values():
        states[job.state.value] += 1
    return Simulated(
        hosts=hosts,
        jobs=len(run.jobs),
        rounds_ms=[1000.0 * seconds for seconds in board.rounds_s],
        longest_ms=1000.0 * board.longest_s,
        ratio=makespan / bound,
        makespan_s=makespan,
        bounds=bounds,
        states=dict(states),
        cpu_s=cpu_s,
    )


def results(sizes: list[Simulated]) -> list[Result]:
    largest = sizes[-1]
    found = [
        Result(name="decision_ms_p50", value=percentile(largest.rounds_ms, 0.5), unit="ms",
               better="lower", target=50.0),
        Result(name="decision_ms_p99", value=percentile(largest.rounds_ms, 0.99), unit="ms",
               better="lower", target=200.0),
        Result(name="decision_ms_first", value=largest.rounds_ms[0], unit="ms", better="lower"),
        Result(name="stretch_ms_most", value=largest.longest_ms, unit="ms", better="lower",
               target=200.0),
        Result(name="peak_memory_mib", unit="MiB", better="lower", target=1024.0,
               value=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        Result(name="simulated_makespan_over_lower_bound", value=largest.ratio, unit="",
               better="lower", target=1.05),
        Result(name="simulated_makespan_s", value=largest.makespan_s, unit="s", better="lower"),
        Result(name="jobs_ended", value=largest.jobs, unit="", better="higher"),
        Result(name="rounds", value=len(largest.rounds_ms), unit="", better="lower"),
        Result(name="simulation_cpu_s", value=largest.cpu_s, unit="s", better="lower"),
    ]  # fmt: skip
    for one in sizes:
        mean = statistics.fmean(one.rounds_ms[1:])
        found.append(
            Result(name=f"decision_ms_mean_{one.hosts}_hosts", value=mean, unit="ms",
                   better="lower")
        )  # fmt: skip
    for small, large in itertools.pairwise(sizes):
        grown = statistics.fmean(large.rounds_ms[1:]) / statistics.fmean(small.rounds_ms[1:])
        allowed = large.hosts * math.log(large.hosts) / (small.hosts * math.log(small.hosts))
        found.append(
            Result(name=f"growth_over_n_log_n_{small.hosts}_{large.hosts}", value=grown / allowed,
                   unit="", better="lower", target=1.0)
        )  # fmt: skip
    return found


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--hosts", type=int, default=1000)
    options.add_argument("--jobs", type=int, default=100_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--tick-s", type=float, default=1.0, help="what ends together is decided "
                         "on together, as while a dispatcher is busy")  # fmt: skip
    options.add_argument("--no-curve", action="store_true", help="only the size that is given")
    given = options.parse_args()
    parts = (1,) if given.no_curve else (100, 10, 1)
    sizes = []
    for part in parts:
        hosts, jobs = max(2, given.hosts // part), max(2, given.jobs // part)
        with searched_once():  # as in the dispatcher
            sizes.append(simulate(hosts, jobs, given.seed, given.tick_s))
        gc.collect()
        _tell(sizes[-1])
    return show("simulate", results(sizes), as_json=given.json)


def _tell(one: Simulated) -> None:
    bounds = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in one.bounds.items())
    states = ", ".join(f"{count} {state}" for state, count in sorted(one.states.items()))
    print(
        f"{one.hosts} hosts, {one.jobs} jobs ({states}): {one.makespan_s:.0f} s, "
        f"{one.ratio:.3f} of the bound ({bounds}); {len(one.rounds_ms)} rounds, "
        f"{one.cpu_s:.0f} s of CPU",
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(main())
