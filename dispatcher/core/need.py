"""What a stage needs of host and device: learned from runs, else a safe first guess. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dispatcher.core.model import Job, JobKind, Reason, Stage
from dispatcher.core.views import GpuView

GPU_STAGES = frozenset({Stage.TRAINING, Stage.STITCH})


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Seconds: one run in ten is shorter than `low`, one in ten longer than `high`."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Of one stage of one job on one device (or none)."""

    vram_mib: int
    cpu_cores: float
    ram_mib: int
    disk_bytes: int
    decode_sessions: int
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
    died_of: Reason | None = None  # out of memory: it needed more than it took


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstGuess:
    """MiB; used until enough runs are known."""

    reconstruct_mib: int = 6000
    reconstruct_cpu_mib: int = 1500  # on a device of kind "cpu"
    stitch_mib: int = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Equal `Needs` give equal answers: a decision is repeatable from its snapshot."""

    guess: FirstGuess = FirstGuess()
    runs: Mapping[tuple[Stage, str], tuple[Observation, ...]] = field(default_factory=dict)

    def of(self, job: Job, gpu: GpuView | None) -> Need:
        """Of `job`'s next stage; `gpu` None for a stage that uses no device."""
        return Need(
            vram_mib=self._vram_mib(job, gpu) if gpu is not None else 0,
            cpu_cores=1.0,
            ram_mib=0,
            # The frames of a video take less than the video; nothing else is as large.
            disk_bytes=job.input_bytes if job.stage is Stage.FRAME_EXTRACTION else 0,
            decode_sessions=0,
            seconds=Span(low=1.0, likely=60.0, high=600.0),
            runs=0,
        )

    def _vram_mib(self, job: Job, gpu: GpuView) -> int:
        if job.need_mib is not None:
            return job.need_mib
        if job.kind is JobKind.STITCH:
            return self.guess.stitch_mib
        return self.guess.reconstruct_cpu_mib if gpu.kind == "cpu" else self.guess.reconstruct_mib
