"""How the cost of a stage grows with its work: the prior that runs correct. Pure.

The figures are rough on purpose, and only their growth matters once there are runs. Memory of a
training: 59 floats a gaussian, four times over (Adam), and what the rasterizer keeps for the
backward pass: gsplat's published peaks are 1.98, 3.43 and 4.99 GB for 1, 2 and 3 million.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dispatcher.core.model import Stage
from dispatcher.core.work_size import Shape

# In the place of what a job does not know yet: a minute of video, prepared by default settings.
TYPICAL = Shape(frames=300, pixels=960 * 540, cap=1_000_000, train_steps=7000)
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """MiB and seconds; never zero, so that a run can be divided by it."""

    vram_mib: float
    ram_mib: float
    disk_mib: float  # by which the run directory grows
    seconds: float


@dataclass(frozen=True, slots=True)
class _Linear:
    """base + stack * MiB of all frames as RGB + gaussians * millions of gaussians, of which `most`
    are in memory at a time."""

    base: float
    stack: float = 0.0
    gaussians: float = 0.0
    most: float = math.inf

    def of(self, shape: Shape) -> float:
        stack_mib = shape.frames * shape.pixels * 3 / _MIB
        return self.base + self.stack * stack_mib + self.gaussians * min(self.most, shape.cap / 1e6)


_RAM: dict[Stage, _Linear] = {
    Stage.VALIDATION: _Linear(200.0),
    Stage.FRAME_EXTRACTION: _Linear(1000.0),  # a decoder of 4K and its reference pictures
    Stage.METADATA_EXTRACTION: _Linear(300.0, stack=0.01),
    Stage.MANIFEST_GENERATION: _Linear(300.0, stack=0.01),
    # What is found in the frames takes about as much as the frames at the default size.
    Stage.COLMAP_RECONSTRUCTION: _Linear(800.0, stack=1.0),
    # The frames, as a list and as one array, and once more at half the size; CUDA's libraries.
    Stage.TRAINING: _Linear(2500.0, stack=2.25, gaussians=300.0),
    Stage.PLY_EXPORT: _Linear(300.0, gaussians=1000.0),
    Stage.SPLAT_EXPORT: _Linear(300.0, gaussians=1000.0),
    # Members are read one after the other: two of a million gaussians peaked at 1.4 GB.
    Stage.STITCH: _Linear(1000.0, gaussians=750.0, most=2 * TYPICAL.cap / 1e6),
}
_RAM_CPU_TRAINING = _Linear(700.0, stack=0.5)  # trains on images a third as wide, without CUDA
_VRAM: dict[Stage, _Linear] = {Stage.TRAINING: _Linear(600.0, gaussians=1500.0)}
_DISK: dict[Stage, _Linear] = {
    Stage.FRAME_EXTRACTION: _Linear(1.0, stack=0.2),  # JPEG
    Stage.COLMAP_RECONSTRUCTION: _Linear(1.0, stack=0.5),
    Stage.TRAINING: _Linear(1.0, gaussians=1000.0),  # a checkpoint is three times the result
    Stage.PLY_EXPORT: _Linear(1.0, gaussians=250.0),
    Stage.SPLAT_EXPORT: _Linear(1.0, gaussians=32.0),
    Stage.STITCH: _Linear(1.0, gaussians=500.0),
}
_LITTLE = _Linear(1.0)


def expected(stage: Stage, shape: Shape, *, on_cpu: bool = False) -> Cost:
    """Grows with every part of `shape`; what is 0 there counts as in TYPICAL."""
    shape = Shape(
        frames=shape.frames or TYPICAL.frames,
        pixels=shape.pixels or TYPICAL.pixels,
        cap=shape.cap or TYPICAL.cap,
        train_steps=shape.train_steps or TYPICAL.train_steps,
    )
    ram = _RAM_CPU_TRAINING if on_cpu and stage is Stage.TRAINING else _RAM.get(stage, _LITTLE)
    return Cost(
        vram_mib=_VRAM.get(stage, _LITTLE).of(shape),
        ram_mib=ram.of(shape),
        disk_mib=_DISK.get(stage, _LITTLE).of(shape),
        seconds=_seconds(stage, shape),
    )


def _seconds(stage: Stage, shape: Shape) -> float:
    millions = shape.cap / 1e6
    match stage:
        case Stage.VALIDATION:
            return 5.0 + 0.02 * shape.frames
        case Stage.FRAME_EXTRACTION:
            return 5.0 + 0.15 * shape.frames
        case Stage.COLMAP_RECONSTRUCTION:
            # Every frame is matched with a few, but bundle adjustment grows faster than frames.
            return 20.0 + 0.25 * math.pow(shape.frames, 1.3)
        case Stage.TRAINING:
            steps = shape.train_steps / 7000.0
            return 20.0 + 300.0 * steps * (0.5 * shape.pixels / TYPICAL.pixels + 0.5 * millions)
        case Stage.STITCH:
            return 20.0 + 20.0 * millions
        case Stage.PLY_EXPORT | Stage.SPLAT_EXPORT:
            return 2.0 + 5.0 * millions
        case _:
            return 2.0 + 0.002 * shape.frames
