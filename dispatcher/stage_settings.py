"""What the stages of a reconstruction do to a job: the settings an operator may change."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """Refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FramesConfig(Frozen):
    """960 wide registers and trains well; the height follows from the video when it is None."""

    select: Literal["fps", "motion"] = "fps"
    fps: float = Field(default=5.0, gt=0, le=240)  # with motion: the most
    motion: float = Field(default=0.015, gt=0, le=0.2)  # of the width, from keyframe to keyframe
    width: int | None = Field(default=960, ge=64, le=16384)
    height: int | None = Field(default=None, ge=64, le=16384)
    min_frames: int = Field(default=8, ge=2)


class SfmConfig(Frozen):
    camera_model: str = "auto"
    camera_params: tuple[float, ...] | None = None
    max_features: int = Field(default=3000, ge=64)
    max_image_size: int = Field(default=1000, ge=64)
    overlap: int = Field(default=10, ge=1)
    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=2, ge=1)
    min_registered_share: float = Field(default=0.8, ge=0, le=1)
    max_reprojection_px: float = Field(default=2.0, gt=0)
    memory_limit_mib: int | None = Field(default=None, ge=256)
    # Polygons that never show the scene (a part of the vehicle); corners as shares of the picture.
    mask: tuple[tuple[tuple[float, float], ...], ...] = ()


class CpuTraining(Frozen):
    width: int = Field(default=320, ge=32)
    steps: int = Field(default=1000, ge=1)
    cap: int = Field(default=30_000, ge=100)
    sh_degree: int = Field(default=1, ge=0, le=3)
    threads: int = Field(default=2, ge=1)


class CudaTraining(Frozen):
    width: int = Field(default=960, ge=32)
    steps: int = Field(default=7000, ge=1)
    cap: int = Field(default=1_000_000, ge=100)
    sh_degree: int = Field(default=3, ge=0, le=3)


class TrainConfig(Frozen):
    seed: int = Field(default=0, ge=0)
    test_every: int = Field(default=8, ge=2)
    checkpoint_every_s: float = Field(default=20.0, gt=0)
    ssim_weight: float = Field(default=0.2, ge=0, le=1)
    cpu: CpuTraining = CpuTraining()
    cuda: CudaTraining = CudaTraining()
