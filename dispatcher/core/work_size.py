"""How large the work of a stage is, and the smaller plans of a job that ran out of memory. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dispatcher.core.model import Job, Stage

# (key of train.cpu and train.cuda, factor, least): fewer gaussians first, then smaller images.
SHRINKS: tuple[tuple[str, float, int], ...] = (
    ("cap", 0.6, 100),
    ("width", 0.75, 32),
    ("cap", 0.6, 100),
    ("cap", 0.6, 100),
)
MAX_SHRINK = len(SHRINKS)
# The stages that hold all frames, or what is found in all of them, in memory at once.
STACK_STAGES = frozenset({Stage.COLMAP_RECONSTRUCTION, Stage.TRAINING})
MAX_STRIDE = 8  # neighbours further apart than this do not overlap any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the cost of a stage depends on; 0: not known.

    `cap` and `train_steps` are those of the plan for a CUDA device: a CPU trains by a plan of its
    own, whose costs are learned under its own name.
    """

    frames: int = 0
    pixels: int = 0  # of one frame
    cap: int = 0
    train_steps: int = 0


def shape_of(job: Job, stage: Stage | None = None) -> Shape:
    """Of `stage` (None: the job's next one), with the job's smaller plan applied."""
    stage = job.stage if stage is None else stage
    strided = job.stride if stage in STACK_STAGES else 1
    pixels, cap = float(job.pixels), float(job.cap)
    for key, factor, _ in SHRINKS[: job.shrink]:
        if key == "cap":
            cap *= factor
        elif stage is Stage.TRAINING:
            pixels *= factor**2
    return Shape(
        frames=-(-job.frames // max(1, strided)),
        pixels=round(pixels),
        cap=round(cap),
        train_steps=job.train_steps,
    )


def thinned(job: Job, stride: int) -> Job:
    """The job with every `stride`-th frame; what it asked for after failing was for more frames."""
    need = job.need_ram_mib
    return dataclasses.replace(
        job,
        stride=stride,
        need_ram_mib=None if need is None else -(-need * job.stride // stride),
    )


def reduced(job: Job, *, shrink: int, stride: int) -> Job:
    """The job by a smaller plan; what it asked of a device after failing was for more gaussians."""
    need = job.need_mib
    if need is not None:
        gone = (factor for key, factor, _ in SHRINKS[job.shrink : shrink] if key == "cap")
        need = math.ceil(need * math.prod(gone))
    return dataclasses.replace(thinned(job, stride), shrink=shrink, need_mib=need)


def smaller_words(job: Job) -> str:
    """In what the job's plan is smaller than what was asked for; "": in nothing."""
    words = []
    if job.shrink:
        cap = shape_of(job, Stage.TRAINING).cap
        most = f" of at most {cap} gaussians" if cap else ""
        words.append(f"trains by a smaller plan{most} (step {job.shrink} of {MAX_SHRINK})")
    if job.stride > 1:
        words.append(f"takes every {job.stride}. frame only")
    return " and ".join(words)


def measured(job: Job, metrics: Mapping[str, Any]) -> Job:
    """The job with what a stage of it found its frames to be. A stage that reads every n-th frame
    only counts those, so nothing is taken from it."""
    if job.stage in STACK_STAGES:
        return job
    frames, width, height = (_count(metrics.get(key)) for key in ("frames", "width", "height"))
    return dataclasses.replace(
        job, frames=frames or job.frames, pixels=width * height or job.pixels
    )


def ran(job: Job, stage: Stage, metrics: Mapping[str, Any]) -> Shape:
    """What a stage that has ended worked on, by what it says of it: a device with less memory free
    than promised trains fewer gaussians, and took as little for these only."""
    shape = shape_of(measured(job, metrics), stage)
    room = _count(metrics.get("cap_by_memory"))
    return dataclasses.replace(shape, cap=min(room, shape.cap) or shape.cap)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def shrunk(config: Mapping[str, Any], steps: int, stride: int = 1) -> dict[str, Any]:
    """The config of a job that ran out of memory: each step makes the training smaller by one
    factor of SHRINKS, on either kind of device, and with a `stride` the stages that hold all
    frames use every n-th. What was asked for stays in the job's run."""
    after = dict(config)
    train = dict(config.get("train", {}))
    for kind in ("cpu", "cuda"):
        plan = dict(train.get(kind, {}))
        for key, factor, least in SHRINKS[:steps]:
            if key in plan:
                plan[key] = min(plan[key], max(least, int(plan[key] * factor)))
        if plan:
            train[kind] = plan
    if train:
        after["train"] = train
    if stride > 1:
        for section in ("sfm", "train"):
            after[section] = {**after.get(section, {}), "frame_stride": stride}
    return after
