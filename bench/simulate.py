"""The real decisions on a virtual clock, for a farm larger than any at hand: what a decision costs,
and how near the plan comes to the least time that any plan could take.

    python -m bench.simulate --hosts 1000 --jobs 100000

GPUs of 12, 24, 48 and 80 GB with speeds of their own, one to four a host; segments of three AUVs a
survey with their stitches; seconds drawn from what was learned; every fiftieth training fails and
is tried again, held or moved as the retry table says.

A round is one decision with everything that the board was told since the last one: what ended,
what began, and a probe of every host each ten seconds. Rounds are counted in CPU seconds of this
process, so that a busy machine does not count. `--jobs` and `--hosts` are also run a tenth and a
hundredth as large: the curve of cost against size.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import random
import resource
import statistics
import sys
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.results import Result, parser, percentile, show
from dispatcher.core.board import Board
from dispatcher.core.expected import expected
from dispatcher.core.forecast import play
from dispatcher.core.model import (
    RECONSTRUCT_STAGES,
    Job,
    JobKind,
    JobState,
    Reason,
    Stage,
)
from dispatcher.core.need import Need, Needs, Observation
from dispatcher.core.outlook import chance, quantile
from dispatcher.core.place import GPU_STAGES, SLOT_OF, Placement, Policy
from dispatcher.core.plan import SegmentView
from dispatcher.core.played import Played
from dispatcher.core.shape import shape_of
from dispatcher.core.snapshot import Snapshot
from dispatcher.core.views import GpuView, HostView

GIB = 1 << 30
PIXELS = 960 * 540
STEPS = 15_000
PROBE_S = 10.0
AUVS = 3
SEGMENTS = 16  # of one AUV in one survey


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    mib: int
    speed: float  # of a training, relative to the prior of dispatcher.core.expected
    share: float  # of the farm's hosts


MODELS = (
    Model("12 GB", 12_288, 0.5, 0.35),
    Model("24 GB", 24_576, 1.0, 0.35),
    Model("48 GB", 49_152, 1.0, 0.20),
    Model("80 GB", 81_920, 2.0, 0.10),
)
# Gaussians, and the share of segments with so many: the last three fit only 24, 48 and 80 GB.
CAPS = (
    (1_000_000, 0.40), (2_000_000, 0.28), (4_000_000, 0.20), (8_000_000, 0.08),
    (16_000_000, 0.03), (40_000_000, 0.01),
)  # fmt: skip
FAULTS = (
    (Reason.GPU_OUT_OF_MEMORY, 0.005),
    (Reason.STAGE_CRASHED, 0.01),
    (Reason.HOST_REBOOTED, 0.003),
    (Reason.TRAINING_DIVERGED, 0.002),
)


# --- the farm ---


def spread(number: int, step: float) -> float:
    """The number's place between 0 and 1: any run of numbers is spread evenly, so that a farm of
    ten has the same mix as one of a thousand. `step`: irrational."""
    return number * step % 1.0


def among(shares: Sequence[float], place: float) -> int:
    """Which of the shares, that come to 1, the place falls into."""
    return min(bisect_right(list(itertools.accumulate(shares)), place), len(shares) - 1)


def make_hosts(count: int) -> tuple[HostView, ...]:
    shares = [model.share for model in MODELS]
    return tuple(_host(n, MODELS[among(shares, spread(n, 2.0**0.5))]) for n in range(count))


def _host(number: int, model: Model) -> HostView:
    gpus = 1 + int(4 * spread(number, 3.0**0.5))
    return HostView(
        name=f"host-{number:04d}",
        reachable=True,
        gpus=tuple(
            GpuView(
                uuid=f"GPU-{number:04d}-{k}", name=model.name, kind="cuda", total_mib=model.mib,
                free_mib=model.mib,
            )
            for k in range(gpus)
        ),
        max_parallel={"extract": gpus, "sfm": gpus, "train": gpus, "stitch": 1},
        headroom_mib=512,
        cpu_cores=16 * gpus,
        ram_total_mib=65_536 * gpus,
        ram_free_mib=65_536 * gpus,
        link_bytes_s=110e6,
        disk_free_bytes=2000 * GIB,
        disk_reserve_bytes=2 * GIB,
    )  # fmt: skip


def make_jobs(count: int, rng: random.Random) -> tuple[Job, ...]:
    jobs = []
    for number in range(count):
        survey, place = divmod(number, AUVS * SEGMENTS)
        frames = round(min(900.0, rng.lognormvariate(math.log(300), 0.3)))
        jobs.append(
            Job(
                id=f"survey-{survey:04d}-{place:02d}",
                kind=JobKind.RECONSTRUCT,
                acquisition=f"survey-{survey:04d}",
                name=f"{place:02d}",
                auv=f"auv-{place % AUVS}",
                created_at=float(number),
                input_bytes=frames * 12_000_000,
                frames=frames,
                pixels=PIXELS,
                cap=CAPS[among([share for _, share in CAPS], spread(number, 5.0**0.5))][0],
                train_steps=STEPS,
            )
        )
    return tuple(jobs)


def make_needs(jobs: tuple[Job, ...], rng: random.Random) -> Needs:
    """Learned from forty runs of each stage on each model, which differ by their speed only."""
    runs = []
    for stage in (*RECONSTRUCT_STAGES, Stage.STITCH):
        spread_of_runs = [rng.lognormvariate(0.0, 0.15) for _ in range(40)]
        for model in MODELS if stage in GPU_STAGES else (None,):
            fitting = [job for job in jobs[:5000] if model is None or _fits(job, model)]
            runs += [_run(rng.choice(fitting), stage, model, noise) for noise in spread_of_runs]
    return Needs.learned_from(runs)


def _fits(job: Job, model: Model) -> bool:
    return expected(Stage.TRAINING, shape_of(job, Stage.TRAINING)).vram_mib <= 0.85 * model.mib


def _run(job: Job, stage: Stage, model: Model | None, noise: float) -> Observation:
    cost = expected(stage, shape_of(job, stage))
    wall_s = cost.seconds * noise / (model.speed if model else 1.0)
    return Observation(
        stage=stage,
        device=model.name if model else "",
        frames=job.frames,
        pixels=job.pixels,
        cap=job.cap,
        wall_s=wall_s,
        cpu_s=wall_s * (2.0 if stage is Stage.COLMAP_RECONSTRUCTION else 1.0),
        peak_rss_mib=cost.ram_mib * 0.9,
        peak_vram_mib=cost.vram_mib * 0.9 if model else None,
        peak_disk_bytes=round(cost.disk_mib * (1 << 20)),
        train_steps=job.train_steps,
    )


def make_snapshot(hosts: int, jobs: int, seed: int) -> Snapshot:
    rng = random.Random(seed)
    everyone = make_jobs(jobs, rng)
    segments: dict[str, list[SegmentView]] = defaultdict(list)
    for job in everyone:
        view = SegmentView(job=job.id, auv=job.auv or "", name=job.name, state=JobState.QUEUED)
        segments[job.acquisition].append(view)
    return Snapshot(
        now=float(jobs),
        jobs=everyone,
        hosts=make_hosts(hosts),
        policy=Policy(needs=make_needs(everyone, rng)),
        segments={name: tuple(views) for name, views in segments.items()},
    )


# --- what happens on it ---


def seconds_for(seed: int, job: Job, need: Need) -> float:
    return quantile(need.seconds, chance(f"{seed}/{job.id}/{job.stage}"))


def fault_for(seed: int, job: Job) -> tuple[Reason, float] | None:
    if job.stage is not Stage.TRAINING:
        return None
    drawn = chance(f"{seed}/{job.id}/{job.attempt}/fault")
    for reason, share in FAULTS:
        if drawn < share:
            return reason, 0.5
        drawn -= share
    return None


class TimedBoard(Board):
    """Counts the CPU of each round: what it was told since the last decision, and the decision."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.rounds_s: list[float] = []
        self.peak_mib = 0.0
        self._told_s = 0.0
        self._shown: dict[str, HostView] = {}
        self._turns: Iterator[str] = iter(())
        self._probed_at: float | None = None

    def put_job(self, job: Job) -> None:
        began = time.process_time()
        super().put_job(job)
        self._told_s += time.process_time() - began

    def put_host(self, host: HostView) -> None:
        self._shown[host.name] = host
        began = time.process_time()
        super().put_host(host)
        self._told_s += time.process_time() - began

    def decide(self, now: float) -> Placement:
        self._probe(now)
        began = time.process_time()
        decided = super().decide(now)
        self.rounds_s.append(self._told_s + time.process_time() - began)
        self._told_s = 0.0
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


# --- the least time that any plan could take ---


def lower_bound_s(snapshot: Snapshot, run: Played, seed: int) -> tuple[float, dict[str, float]]:
    """Seconds, and what they are made of. No plan for the jobs that ended done can take less than

    - device: for prices p of a model's slot, sum over jobs of min over the models that hold one of
      p * seconds there, over the sum of p of all training slots (the dual of the fractional
      assignment). p is the model's speed, or 0 below a memory size: then it is the bound of
      what only larger GPUs can hold. To it comes the shortest way to a training and the shortest
      from one to the end of the survey, during which no training can run;
    - slots: the seconds of all extract (sfm) stages over all extract (sfm) slots;
    - chain: the longest way of one segment through its transfer, its stages on the fastest device
      that holds it, and the two stitches that must follow.

    Failed attempts and what they repeat are left out.
    """
    needs = snapshot.policy.needs
    device = {model.name: _device(model) for model in MODELS}
    slots: dict[str, float] = defaultdict(float)
    trains: dict[str, float] = defaultdict(float)
    for host in snapshot.hosts:
        trains[host.gpus[0].name] += host.max_parallel["train"]
        for slot in ("extract", "sfm"):
            slots[slot] += host.max_parallel[slot]
    link = max(host.link_bytes_s for host in snapshot.hosts)
    present = [model for model in MODELS if trains[model.name]]
    work: dict[str, float] = defaultdict(float)
    priced = {model.mib: 0.0 for model in present}
    lead, tail, longest = math.inf, math.inf, 0.0
    stitch_s = 2 * min(_stitch_s(needs, gpu) for gpu in device.values())
    for first in snapshot.jobs:
        job = run.jobs[first.id]  # with the plan it was done by, where memory made that smaller
        if job.state is not JobState.DONE:
            continue
        took = {
            stage: seconds_for(seed, at, needs.of(at, None))
            for stage in RECONSTRUCT_STAGES
            if stage is not Stage.TRAINING
            for at in (dataclasses.replace(job, stage=stage),)
        }
        training = dataclasses.replace(job, stage=Stage.TRAINING)
        held = {
            model: seconds_for(seed, training, need)
            for model in present
            for need in (needs.of(training, device[model.name]),)
            if need.vram_mib <= model.mib - snapshot.hosts[0].headroom_mib
        }
        for stage, seconds in took.items():
            work[SLOT_OF[stage]] += seconds
        for least in priced:
            if all(model.mib >= least for model in held):
                priced[least] += min(model.speed * s for model, s in held.items())
        position = RECONSTRUCT_STAGES.index(Stage.TRAINING)
        before = job.input_bytes / link + sum(took[s] for s in RECONSTRUCT_STAGES[:position])
        after = sum(took[s] for s in RECONSTRUCT_STAGES[position + 1 :]) + stitch_s
        lead, tail = min(lead, before), min(tail, after)
        longest = max(longest, before + min(held.values()) + after)
    bounds = {
        f"device_{model.mib // 1024}_gib": lead
        + tail
        + priced[model.mib]
        / sum(other.speed * trains[other.name] for other in present if other.mib >= model.mib)
        for model in present
    }
    bounds |= {slot: work[slot] / slots[slot] for slot in slots}
    bounds["chain"] = longest
    return max(bounds.values()), bounds


def _device(model: Model) -> GpuView:
    return GpuView(uuid="", name=model.name, kind="cuda", total_mib=model.mib, free_mib=model.mib)


def _stitch_s(needs: Needs, gpu: GpuView) -> float:
    stitch = Job(
        id="", kind=JobKind.STITCH, acquisition="", name="", auv=None, created_at=0.0,
        stage=Stage.STITCH,
    )  # fmt: skip
    return quantile(needs.of(stitch, gpu).seconds, 0.0)


# --- the benchmark ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    hosts: int
    jobs: int
    rounds_ms: list[float]
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
