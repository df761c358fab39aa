"""What a stage needs of host and device: learned from runs, else a safe first guess. Pure.

`dispatcher.core.expected` says how a cost grows with the shape of the work; runs of the same stage
on the same model of GPU say by which factor it is wrong there. For device memory, RAM and disk:

    learned = expected(shape) * (.95 quantile of taken / expected, newest 200 runs) * MARGIN
    trust   = min(1, runs / ENOUGH_RUNS)
    need    = trust * learned + (1 - trust) * max(learned, first guess)

never below what a recent run (one of the newest RECENT_RUNS) of no larger work took, and never
below expected(shape) * (what a recent run had when it ran out of it / expected) * OOM_MARGIN.
A run that went wrong in its figures is therefore forgotten after RECENT_RUNS newer ones. It never
rules a device out either: where larger work has ended well on a model of GPU, or where memory ran
out, a need is at most WHOLE_DEVICE of it. What really does not fit is made smaller (core.retry).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dispatcher.core.expected import TYPICAL, expected
from dispatcher.core.model import Job, JobKind, Reason, Stage, stages_of
from dispatcher.core.views import GpuView
from dispatcher.core.work_size import STACK_STAGES, Shape, shape_of

GPU_STAGES = frozenset({Stage.TRAINING})
KEPT_RUNS = 200  # of each stage and device
RECENT_RUNS = 20
TIMED_RUNS = 50  # newest ones that seconds are taken from: hosts and software change
ENOUGH_RUNS = 5
MARGIN = 1.15
OOM_MARGIN = 1.25
WHOLE_DEVICE = 0.9
_QUANTILE = 0.95
_GRID = 1.05  # factors are rounded up to powers of it, so that one more run seldom changes anything
_STEP_MIB = 16  # what runs took is rounded up to multiples of it
_MIB = 1 << 20
_MEMO = 20_000
_ABSURD = 1e15
_GUESSED_SPAN = (0.3, 1.0, 4.0)
_LIGHT = frozenset({Stage.VALIDATION, Stage.METADATA_EXTRACTION, Stage.MANIFEST_GENERATION})


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Seconds: one run in ten is shorter than `low`, one in ten longer than `high`."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Of one stage of one job on one device (or none).

    On a device of kind "cpu" `vram_mib` and `ram_mib` are the same memory: it counts once.
    """

    vram_mib: int
    cpu_cores: float
    ram_mib: int
    disk_bytes: int
    decode_sessions: int  # of a GPU's video decoder, where one is free; else the CPU decodes
    seconds: Span
    runs: int  # how many runs this was learned from; 0: a first guess


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one run of a stage took; `device` is the GPU's model, "" where it used none."""

    stage: Stage
    device: str
    frames: int
    pixels: int
    cap: int
    wall_s: float
    cpu_s: float
    peak_rss_mib: float
    peak_vram_mib: float | None
    peak_disk_bytes: int | None
    train_steps: int = 0
    died_of: Reason | None = None  # out of memory or disk: it needed more than it took

    @property
    def shape(self) -> Shape:
        return Shape(
            frames=_count(self.frames),
            pixels=_count(self.pixels),
            cap=_count(self.cap),
            train_steps=_count(self.train_steps),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstGuess:
    """MiB of a typical plan or a larger one, used until enough runs are known. Other RAM comes
    from the stack of frames (`expected`)."""

    reconstruct_mib: int = 6000
    reconstruct_cpu_mib: int = 1500  # on a device of kind "cpu"
    stitch_ram_mib: int = 2000  # a stitch uses no device


@dataclass(frozen=True, slots=True)
class _Amount:
    """What runs say of one resource, relative to what is expected of them. MiB."""

    factor: float | None = None  # None: no run told
    lost: float = 0.0  # factor that those which ran out of memory had reached
    taken: tuple[tuple[float, float], ...] = ()  # (expected, most taken up to there), ascending
    largest: float = 0.0  # expected of the largest run that ended well

    def need(self, cost: float, guess: float, runs: int, whole: float = math.inf) -> float:
        """`whole`: what a single need never exceeds where runs have shown that it fits."""
        if self.factor is None:
            need = guess
        else:
            learned = cost * self.factor * MARGIN
            trust = min(1.0, runs / ENOUGH_RUNS)
            need = trust * learned + (1.0 - trust) * max(learned, guess)
            below = bisect.bisect_right(self.taken, (cost, math.inf))
            if below:
                need = max(need, self.taken[below - 1][1])
            if cost <= self.largest:
                need = min(need, whole)
        return max(need, min(whole, cost * self.lost * OOM_MARGIN))


@dataclass(frozen=True, slots=True)
class _Learned:
    """What the runs of one stage on one device come to. Equal ones give equal answers, but for
    the number of runs beyond ENOUGH_RUNS."""

    runs: int = field(default=0, compare=False)
    trusted: int = 0
    vram: _Amount = _Amount()
    ram: _Amount = _Amount()
    disk: _Amount = _Amount()
    cores: float | None = None
    span: tuple[float, float, float] = _GUESSED_SPAN


Key = tuple[Stage, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Equal `Needs` give equal answers: a decision is repeatable from its snapshot."""

    guess: FirstGuess = FirstGuess()
    runs: Mapping[Key, tuple[Observation, ...]] = field(default_factory=dict)  # oldest first
    _learned: dict[tuple[Stage, str, bool], _Learned] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _memo: dict[tuple[object, ...], Need] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def learned_from(
        cls, observations: Iterable[Observation], guess: FirstGuess = FirstGuess()
    ) -> Needs:
        """`observations`: oldest first."""
        runs: dict[Key, list[Observation]] = {}
        for one in observations:
            runs.setdefault((one.stage, one.device), []).append(one)
        return cls(guess=guess, runs={key: tuple(all_[-KEPT_RUNS:]) for key, all_ in runs.items()})

    def learn(self, one: Observation) -> Needs:
        """With one newer run; what is known of other stages and devices is not worked out anew."""
        key = (one.stage, one.device)
        known = (*self.runs.get(key, ()), one)[-KEPT_RUNS:]
        after = Needs(guess=self.guess, runs={**self.runs, key: known})
        after._learned.update({k: v for k, v in self._learned.items() if k[:2] != key})
        return after

    def agrees(self, other: Needs, stage: Stage, device: str) -> bool:
        """Whether both answer alike for a stage on a model of GPU."""
        return all(
            self._of_runs(stage, device, on_cpu) == other._of_runs(stage, device, on_cpu)
            for on_cpu in (False, True)
        )

    def of(self, job: Job, gpu: GpuView | None) -> Need:
        """Of `job`'s next stage; with a `gpu` of the one that uses a device, if it has one."""
        if gpu is None or job.kind is JobKind.STITCH:
            return self._need(job, job.stage, None)
        return self._need(job, Stage.TRAINING, gpu)

    def most_ram_mib(self, job: Job, gpu: GpuView | None) -> int:
        """Of all stages that the job still has to run, on a host that would give it `gpu`."""
        stages = stages_of(job.kind)
        ahead = stages[stages.index(job.stage) :] if job.stage in stages else ()
        return max(
            (self._need(job, s, gpu if s in GPU_STAGES else None).ram_mib for s in ahead),
            default=0,
        )

    def most_disk_bytes(self, job: Job) -> int:
        """By how much the job's files will at most grow on its host from its next stage on, until
        it is done. Source videos that lie there go once their frames are verified."""
        stages = stages_of(job.kind)
        held = most = 0
        for stage in stages[stages.index(job.stage) :] if job.stage in stages else ():
            held += self._disk_bytes(job, stage)
            most = max(most, held)
            if stage is Stage.FRAME_EXTRACTION:
                held -= job.input_bytes
        return most

    def _disk_bytes(self, job: Job, stage: Stage) -> int:
        """On the model of GPU that is known to take the most: this one is not chosen yet."""
        devices = [device for known, device in self.runs if known is stage] or [""]
        return max(
            self._disk(job, stage, self._of_runs(stage, device, False)) for device in devices
        )

    def _disk(self, job: Job, stage: Stage, known: _Learned) -> int:
        cost = expected(stage, shape_of(job, stage)).disk_mib
        # The frames of a video take no more than the video.
        guess = max(cost, job.input_bytes / _MIB) if stage is Stage.FRAME_EXTRACTION else cost
        return math.ceil(known.disk.need(cost, guess, known.runs) * _MIB)

    def _need(self, job: Job, stage: Stage, gpu: GpuView | None) -> Need:
        device = None if gpu is None else (gpu.name, gpu.kind, gpu.total_mib)
        key = (
            stage, device, job.frames, job.pixels, job.cap, job.train_steps, job.shrink,
            job.stride, job.input_bytes, job.need_mib, job.need_ram_mib,
        )  # fmt: skip
        found = self._memo.get(key)
        if found is None:
            if len(self._memo) >= _MEMO:
                self._memo.clear()
            found = self._memo[key] = self._work_out(job, stage, gpu)
        return found

    def _of_runs(self, stage: Stage, device: str, on_cpu: bool) -> _Learned:
        key = (stage, device, on_cpu)
        found = self._learned.get(key)
        if found is None:
            found = _learn(stage, self.runs.get((stage, device), ()), on_cpu=on_cpu)
            self._learned[key] = found
        return found

    def _work_out(self, job: Job, stage: Stage, gpu: GpuView | None) -> Need:
        on_cpu = gpu is not None and gpu.kind == "cpu"
        known = self._of_runs(stage, "" if gpu is None else gpu.name, on_cpu)
        cost = expected(stage, shape_of(job, stage), on_cpu=on_cpu)
        least = self.guess.stitch_ram_mib if stage is Stage.STITCH else 0
        ram = known.ram.need(cost.ram_mib, max(cost.ram_mib, least), known.runs)
        vram = 0.0
        if on_cpu:
            guess = max(cost.ram_mib, self.guess.reconstruct_cpu_mib)
            vram = ram = known.ram.need(cost.ram_mib, guess, known.runs)
        elif gpu is not None:
            typical = expected(stage, TYPICAL).vram_mib
            share = min(1.0, cost.vram_mib / typical)  # a smaller plan fits a smaller device
            guess = max(cost.vram_mib, share * self.guess.reconstruct_mib)
            whole = WHOLE_DEVICE * gpu.total_mib
            vram = known.vram.need(cost.vram_mib, guess, known.runs, whole)
            if job.need_mib is not None:
                vram = job.need_mib
        if job.need_ram_mib is not None and (stage in STACK_STAGES or stage is Stage.STITCH):
            ram = max(ram, job.need_ram_mib)
            vram = ram if on_cpu else vram
        low, likely, high = (cost.seconds * factor for factor in known.span)
        return Need(
            vram_mib=math.ceil(vram),
            cpu_cores=known.cores or (0.5 if stage in _LIGHT else 1.0),
            ram_mib=math.ceil(ram),
            disk_bytes=self._disk(job, stage, known),
            decode_sessions=int(stage is Stage.FRAME_EXTRACTION),
            seconds=Span(low=low, likely=likely, high=high),
            runs=known.runs,
        )


def _learn(stage: Stage, runs: tuple[Observation, ...], *, on_cpu: bool) -> _Learned:
    costs = [expected(stage, one.shape, on_cpu=on_cpu) for one in runs]
    rows = list(zip(runs, costs, strict=True))
    done = [(one, cost) for one, cost in rows if one.died_of is None]
    recent = rows[-RECENT_RUNS:]

    def amount(
        took: list[tuple[float, float]], lost: list[tuple[float, float]], step: int = _STEP_MIB
    ) -> _Amount:
        taken = [(cost, mib) for cost, mib in took if _sane(mib)]
        return _Amount(
            factor=_up(_quantile([mib / cost for cost, mib in taken], _QUANTILE)),
            lost=max((_up(mib / cost) or 0.0 for cost, mib in lost if _sane(mib)), default=0.0),
            taken=_most_up_to(taken[-RECENT_RUNS:], step),
            largest=max((cost for cost, _ in taken), default=0.0),
        )

    return _Learned(
        runs=len(done),
        trusted=min(len(done), ENOUGH_RUNS),
        vram=amount(
            [(cost.vram_mib, one.peak_vram_mib or 0.0) for one, cost in done],
            [
                (cost.vram_mib, one.peak_vram_mib or 0.0)
                for one, cost in recent
                if one.died_of is Reason.GPU_OUT_OF_MEMORY
            ],
        ),
        ram=amount(
            [(cost.ram_mib, one.peak_rss_mib) for one, cost in done],
            [
                (cost.ram_mib, one.peak_rss_mib)
                for one, cost in recent
                if one.died_of is Reason.OUT_OF_MEMORY
            ],
        ),
        disk=amount(
            [(cost.disk_mib, _count(one.peak_disk_bytes or 0) / _MIB) for one, cost in done],
            [
                (cost.disk_mib, _count(one.peak_disk_bytes or 0) / _MIB)
                for one, cost in recent
                if one.died_of is Reason.DISK_FULL
            ],
            step=1,  # of eight stages together
        ),
        cores=_cores([one for one, _ in done[-TIMED_RUNS:]]),
        span=_span(
            [one.wall_s / cost.seconds for one, cost in done[-TIMED_RUNS:] if _sane(one.wall_s)]
        ),
    )


def _most_up_to(taken: list[tuple[float, float]], step: int) -> tuple[tuple[float, float], ...]:
    """(expected, MiB) of runs -> for each size the most that runs up to it took."""
    steps: list[tuple[float, float]] = []
    # A size counts from a little below itself: fewer steps, and never too little.
    rounded = sorted((_down(cost), math.ceil(mib / step) * step) for cost, mib in taken)
    for cost, mib in rounded:
        if steps and mib <= steps[-1][1]:
            continue
        if steps and steps[-1][0] == cost:
            steps.pop()
        steps.append((cost, float(mib)))
    return tuple(steps)


def _cores(runs: list[Observation]) -> float | None:
    """Cores kept busy by the median run, in quarters; too few runs say nothing."""
    used = [one.cpu_s / one.wall_s for one in runs if _sane(one.wall_s) and _sane(one.cpu_s)]
    if len(used) < ENOUGH_RUNS:
        return None
    median = _quantile(used, 0.5)
    return None if median is None else max(0.25, math.ceil(median * 4) / 4)


def _span(ratios: list[float]) -> tuple[float, float, float]:
    """Quantiles .1, .5 and .9; while runs are few the span is wider than they are."""
    low, likely, high = (_quantile(ratios, share) for share in (0.1, 0.5, 0.9))
    if low is None or likely is None or high is None:
        return _GUESSED_SPAN
    doubt = 1.0 + 2.0 / len(ratios) if len(ratios) < TIMED_RUNS else 1.0
    middle = _near(likely)
    return min(_near(low), _near(likely / doubt)), middle, max(_near(high), _near(likely * doubt))


def _sane(value: float | None) -> bool:
    """Whether a figure can have been measured at all."""
    return value is not None and 1.0 / _ABSURD < value < _ABSURD


def _count(value: int) -> int:
    return value if 0 < value < _ABSURD else 0


def _quantile(values: list[float], share: float) -> float | None:
    """The smallest value that at least `share` of all do not exceed; None of none."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)]


def _up(value: float | None) -> float | None:
    return None if value is None else _GRID ** math.ceil(math.log(value, _GRID) - 1e-6)


def _down(value: float) -> float:
    return _GRID ** math.floor(math.log(value, _GRID) + 1e-6)


def _near(value: float) -> float:
    return _GRID ** round(math.log(value, _GRID))
