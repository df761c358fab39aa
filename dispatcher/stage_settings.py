"""What the stages of a reconstruction do to a job: the settings an operator may change."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


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


LensMode = Literal["wide", "linear", "narrow", "medium", "super", "hyper"]


class LensProfile(Frozen):
    """A lens as `cosma calibrate` writes it, for recordings that say the same of themselves."""

    camera: str
    mode: LensMode | None
    width: int = Field(ge=16)  # of the video
    height: int = Field(ge=16)
    underwater: bool
    stabilised: bool
    camera_model: str
    camera_params: tuple[float, ...]  # at that size


class SfmConfig(Frozen):
    camera_model: str = "auto"
    camera_params: tuple[float, ...] | None = None
    # What tells the lens where camera_model is auto.
    lens_mode: LensMode | None = None  # where the recording does not say it
    underwater: bool = True
    profiles: tuple[LensProfile, ...] = ()
    # One standard deviation of the focal length in camera_params, over it. EXIF: 0.02.
    focal_uncertainty: float = Field(default=0.02, gt=0, le=1)
    max_features: int = Field(default=3000, ge=64)
    max_image_size: int = Field(default=1000, ge=64)
    overlap: int = Field(default=10, ge=1)
    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=2, ge=1)
    min_registered_share: float = Field(default=0.8, ge=0, le=1)
    max_reprojection_px: float = Field(default=2.0, gt=0)
    memory_limit_mib: int | None = Field(default=None, ge=256)
    patience: float = Field(default=1.0, gt=0)  # with a step that does not get on, times as much
    # Polygons that never show the scene (a part of the vehicle); corners as shares of the picture.
    mask: tuple[tuple[tuple[float, float], ...], ...] = ()
    mask_command: tuple[str, ...] = ()  # a program that masks what moves: docs/backends.md


class NavigationConfig(Frozen):
    """Of the vehicle's logs (docs/navigation.md)."""

    offset_s: float = 0.0  # added to a log's times: the camera's clock minus the vehicle's
    max_gap_s: float = Field(default=3.0, gt=0, le=600)  # between two samples around a frame
    camera_above_altimeter_m: float = Field(default=0.0, ge=-10, le=10)


class DepthConfig(Frozen):
    """Depth maps of the frames by an ONNX model, such as Depth-Anything-V2: docs/backends.md."""

    model: str | None = None  # the file's path on the hosts; none: no depth maps
    output: Literal["disparity", "depth"] = "disparity"  # what it says, up to scale and shift
    side: int = Field(default=518, ge=64, le=4096)  # pixels of its input's shorter side
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    deviation: tuple[float, float, float] = (0.229, 0.224, 0.225)


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


# What each preset puts in place of the defaults above, where the operator says nothing else.
PRESETS: dict[str, dict[str, dict[str, int | float]]] = {
    "preview": {
        "cpu": {"width": 240, "steps": 400, "cap": 12_000},
        "cuda": {"width": 640, "steps": 2000, "cap": 300_000, "sh_degree": 1},
    },
    "standard": {},
    "best": {
        "cpu": {"steps": 2800, "cap": 40_000},
        "cuda": {"width": 1600, "steps": 30_000, "cap": 3_000_000},
    },
}


class TrainConfig(Frozen):
    preset: Literal["preview", "standard", "best"] = "standard"
    seed: int = Field(default=0, ge=0)
    test_every: int = Field(default=8, ge=2)
    checkpoint_every_s: float = Field(default=20.0, gt=0)
    ssim_weight: float = Field(default=0.2, ge=0, le=1)
    # How gaussians are added: docs/decisions/0007.
    strategy: Literal["budget", "default", "mcmc"] = "budget"
    exposure: bool = False
    medium: bool = False
    depth_weight: float = Field(default=0.0, ge=0, le=10)  # of the depth maps; 0: not used
    # Ways to end before the last step; 0: not that way.
    plateau: float = Field(default=0.0, ge=0, le=1)
    target_ssim: float = Field(default=0.0, ge=0, le=1)
    budget_s: float = Field(default=0.0, ge=0)
    lpips_weights: str = ""  # file on the hosts (docs/backends.md); "": LPIPS is not measured
    cpu: CpuTraining = CpuTraining()
    cuda: CudaTraining = CudaTraining()

    @model_validator(mode="before")
    @classmethod
    def _preset_first(cls, data: Any) -> Any:
        """The preset's values under those that are given."""
        if not isinstance(data, dict):
            return data
        merged = dict(data)
        for kind, values in PRESETS.get(str(data.get("preset", "standard")), {}).items():
            given = data.get(kind, {})
            if isinstance(given, dict):
                merged[kind] = {**values, **given}
        return merged


class MeshConfig(Frozen):
    """A mesh of what was trained, by Open3D on the host (extra `mesh`): docs/backends.md."""

    make: bool = False
    width: int = Field(default=480, ge=32, le=16384)  # pixels that depth is rendered at
    voxel: float | None = Field(default=None, gt=0)  # units of the model; None: 1.5 pixels


class Thresholds(Frozen):
    """A figure beyond `warn` is told, one beyond `fail` holds the job; null: never."""

    warn: float | None = None
    fail: float | None = None


class VerdictConfig(Frozen):
    """Of each figure of a finished segment. Higher is better for psnr, ssim, registered_share and
    gaussians, lower for the others; a figure that was not measured passes."""

    psnr: Thresholds = Thresholds(warn=22.0, fail=15.0)
    ssim: Thresholds = Thresholds(warn=0.7, fail=0.4)
    lpips: Thresholds = Thresholds()
    registered_share: Thresholds = Thresholds(warn=0.95, fail=0.5)
    reprojection_px: Thresholds = Thresholds(warn=1.5, fail=4.0)
    gravity_spread_deg: Thresholds = Thresholds(warn=2.0, fail=10.0)
    turning_error_deg: Thresholds = Thresholds(warn=4.0)
    drift_m: Thresholds = Thresholds(warn=5.0)
    gaussians: Thresholds = Thresholds(warn=1000.0, fail=100.0)


class LingbotConfig(Frozen):
    """Where lingbot-map is on the hosts, and how it runs there (docs/backends.md)."""

    demo: str  # its demo.py
    model: str  # its checkpoint
    python: str = "python3"  # of its environment
    window: int = Field(default=64, ge=16)  # keyframes; 128 for more than some 3000 frames
    options: tuple[str, ...] = ()
    # RAM: without frames (its checkpoint is read twice over), and for each 518 x 294 frame.
    base_mib: float = Field(default=9500.0, ge=0)
    frame_mib: float = Field(default=14.0, gt=0)


class ReconstructConfig(Frozen):
    """What makes the result instead of our trainer (docs/backends.md)."""

    backend: Literal["gsplat", "lingbot-map", "command"] = "gsplat"
    command: tuple[str, ...] = ()
    lingbot: LingbotConfig | None = None
    timeout_s: float = Field(default=14_400.0, gt=0)

    @model_validator(mode="after")
    def _has_a_command(self) -> Self:
        if (self.backend == "command") != bool(self.command):
            raise ValueError("backend command needs command, and no other takes one")
        if (self.backend == "lingbot-map") != (self.lingbot is not None):
            raise ValueError("backend lingbot-map needs lingbot, and no other takes it")
        return self
