"""What a decision goes by: limits, the order in which hosts are taken, what stages need. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Literal

from dispatcher.core.model import Job, JobKind, Stage, stages_of
from dispatcher.core.need import GPU_STAGES, Need, Needs
from dispatcher.core.views import GpuView

SLOT_OF: dict[Stage, str] = {
    Stage.VALIDATION: "extract",
    Stage.FRAME_EXTRACTION: "extract",
    Stage.METADATA_EXTRACTION: "extract",
    Stage.MANIFEST_GENERATION: "extract",
    Stage.COLMAP_RECONSTRUCTION: "sfm",
    Stage.TRAINING: "train",
    Stage.PLY_EXPORT: "extract",
    Stage.SPLAT_EXPORT: "extract",
    Stage.STITCH: "stitch",
}

_MEMO = 20_000

# earliest_finish: where the job is expected to be done first.
# most_free: an idle device before a busy one, then the one with the most free memory.
# best_fit: an idle device before a busy one, then the smallest that holds the job.
Order = Literal["earliest_finish", "most_free", "best_fit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ahead:
    """What a job still asks of a host: likely seconds."""

    device_s: float  # of its stage on a device; 0: that is behind it
    lead_s: float  # of the stages before that one
    slots: tuple[tuple[str, float], ...]  # of all its stages, by slot
    learned: bool  # from runs; else they are first guesses


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Needs, limits and preferences; MiB, bytes and seconds."""

    needs: Needs = field(default_factory=Needs)
    order: Order = "earliest_finish"
    # Jobs a host may hold beyond one per GPU: while one trains, the next is extracted and mapped
    # and the one after is on the wire. More where measured stages take longer before the training
    # than the training does.
    prefetch: int = 2
    # A job that waits for longer than this keeps younger ones off what it needs.
    patience_s: float = 600.0
    probe_stale_s: float = 120.0
    leave_silent_s: float = 600.0  # a job that waits on a host silent for longer goes elsewhere
    link_bytes_s: float = 100e6  # of a link that was never measured: gigabit Ethernet
    slots: dict[str, int] = field(  # where a host sets no max_parallel; train: one per GPU
        default_factory=lambda: {"extract": 2, "sfm": 1, "stitch": 1}
    )
    _known: dict[Hashable, Any] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )  # answers given before
    _works: dict[str, tuple[Job, Hashable]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def work(self, job: Job) -> Hashable:
        """All that needs depend on but stage and device. Frames and bytes in steps of a sixteenth,
        so that a hundred thousand jobs are a few hundred kinds of work."""
        known = self._works.get(job.id)
        if known is not None and known[0] is job:
            return known[1]
        if len(self._works) >= _MEMO:
            self._works.clear()
        found = _work(job)
        self._works[job.id] = (job, found)
        return found

    def need(self, job: Job, gpu: GpuView | None, stage: Stage | None = None) -> Need:
        """Of `stage` (None: the job's next one) on this device; equal for jobs of equal `work`."""
        wanted = job.stage if stage is None else stage
        key = (self.work(job), wanted, None if gpu is None else model_of(gpu))
        known: Need | None = self._known.get(key)
        if known is None:
            known = self.needs.of(dataclasses.replace(_rounded(job), stage=wanted), gpu)
            self._known[key] = known
        return known

    def disk_ahead(self, job: Job) -> int:
        """By how much its files will at most grow from now on, inputs that are not there yet left
        out; equal for jobs of equal `work`."""
        key = ("disk", self.work(job), job.stage)
        known: int | None = self._known.get(key)
        if known is None:
            known = self._known[key] = self.needs.most_disk_bytes(_rounded(job))
        return known

    def disk_need(self, job: Job) -> int:
        """What a disk must have left for a job that has nothing there yet."""
        return _rounded(job).input_bytes + self.disk_ahead(job)

    def ahead(self, job: Job, gpus: tuple[GpuView, ...]) -> Ahead:
        """On a host with these devices; on the fastest of them where they differ."""
        key = (self.work(job), job.stage, tuple(map(model_of, gpus)))
        known: Ahead | None = self._known.get(key)
        if known is None:
            known = self._known[key] = self._ahead(job, gpus)
        return known

    def _ahead(self, job: Job, gpus: tuple[GpuView, ...]) -> Ahead:
        device = device_stage(job)
        device_s = lead_s = 0.0
        slots: dict[str, float] = {}
        learned = True
        before = device is not None
        for stage in stages_ahead(job):
            if stage is device:
                options = [self.need(job, gpu, stage) for gpu in gpus]
                if not options:
                    continue
                need = min(options, key=lambda one: one.seconds.likely)
                device_s, before = need.seconds.likely, False
            else:
                need = self.need(job, None, stage)
                lead_s += need.seconds.likely if before else 0.0
            slots[SLOT_OF[stage]] = slots.get(SLOT_OF[stage], 0.0) + need.seconds.likely
            learned = learned and need.runs > 0
        return Ahead(
            device_s=device_s, lead_s=lead_s, slots=tuple(sorted(slots.items())), learned=learned
        )


def model_of(gpu: GpuView) -> tuple[str, str, int]:
    """All of a device that needs depend on."""
    return gpu.name, gpu.kind, gpu.total_mib


def stages_ahead(job: Job) -> tuple[Stage, ...]:
    """The job's next stage and those after it."""
    return _AHEAD[job.kind, job.stage]


def device_stage(job: Job) -> Stage | None:
    """The stage ahead that uses a device; None: it is behind the job."""
    return _ON_DEVICE[job.kind, job.stage]


def _ahead_of(kind: JobKind, stage: Stage) -> tuple[Stage, ...]:
    stages = stages_of(kind)
    return stages[stages.index(stage) :] if stage in stages else ()


_AHEAD = {(kind, stage): _ahead_of(kind, stage) for kind in JobKind for stage in Stage}
_ON_DEVICE = {
    known: next((stage for stage in ahead if stage in GPU_STAGES), None)
    for known, ahead in _AHEAD.items()
}


def share_key(job: Job) -> tuple[str, str]:
    """What gets a fair share: an acquisition's segments, and its stitches."""
    return job.acquisition, job.kind


def _work(job: Job) -> str:
    # A text knows its hash once it was asked for it, a tuple works it out each time.
    return (
        f"{job.kind}/{job.need_mib}/{job.need_ram_mib}/{rounded_up(job.frames)}/{job.pixels}"
        f"/{job.cap}/{job.train_steps}/{job.shrink}/{job.stride}/{rounded_up(job.input_bytes)}"
    )


def _rounded(job: Job) -> Job:
    return dataclasses.replace(
        job, frames=rounded_up(job.frames), input_bytes=rounded_up(job.input_bytes)
    )


def rounded_up(value: int, digits: int = 5) -> int:
    """To so many binary digits: with five at most a sixteenth more."""
    shift = max(0, value.bit_length() - digits)
    return -(-value >> shift) << shift
