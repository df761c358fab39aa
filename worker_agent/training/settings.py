"""The training part of the pipeline configuration, typed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

STRATEGIES = ("budget", "default", "mcmc")


class SettingsInvalid(ValueError):
    """A key is missing or out of range; the text names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """What a run needs to know; see `from_config` for where it comes from."""

    seed: int
    test_every: int  # every n-th view is held out
    checkpoint_every_s: float
    ssim_weight: float  # of 1 - SSIM in the loss, the rest is L1
    width: int  # pixels; frames are never enlarged
    steps: int
    cap: int  # most gaussians
    sh_degree: int
    threads: int = 1  # of the CPU rasterizer
    frame_stride: int = 1  # every n-th frame is used: all of them did not fit into memory
    strategy: str = "budget"  # where gaussians are added and removed: STRATEGIES
    exposure: bool = False  # a gain and an offset per view and channel are learned
    medium: bool = False  # water is learned and taken out of the gaussians' colours
    depth_weight: float = 0.0  # of the depth maps' term in the loss, where there are any
    plateau: float = 0.0  # least gain in SSIM, else training ends early (stopping.py); 0: never
    target_ssim: float = 0.0  # held-out SSIM at which it ends; 0: none
    lpips_weights: str = ""  # file on the host (lpips.py); "": LPIPS is not measured
    budget_s: float = 0.0  # seconds after which it ends, over all attempts; 0: none

    def __post_init__(self) -> None:
        ranges = {
            "test_every": (2, 10_000),
            "checkpoint_every_s": (0.0, 86_400.0),
            "ssim_weight": (0.0, 1.0),
            "width": (32, 16_384),
            "steps": (1, 10_000_000),
            "cap": (16, 100_000_000),
            "sh_degree": (0, 3),
            "threads": (1, 1024),
            "frame_stride": (1, 1024),
            "depth_weight": (0.0, 10.0),
            "plateau": (0.0, 1.0),
            "target_ssim": (0.0, 1.0),
            "budget_s": (0.0, 1e9),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise SettingsInvalid(f"train.{name} is {value}, must be {low} to {high}")
        if self.strategy not in STRATEGIES:
            names = ", ".join(STRATEGIES[:-1]) + f" or {STRATEGIES[-1]}"
            raise SettingsInvalid(f"train.strategy is {self.strategy!r}, must be {names}")

    @classmethod
    def from_config(cls, train: Mapping[str, Any], device: str) -> TrainSettings:
        """`train` is config["train"], `device` "cpu" or "cuda" picks its sub-section.

        Raises SettingsInvalid.
        """
        section = train.get(device)
        if not isinstance(section, Mapping):
            raise SettingsInvalid(f"train.{device} is missing")
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            source = section if field.name in section else train
            if field.name in source:
                kind = {"float": float, "bool": bool, "str": str}.get(str(field.type), int)
                try:
                    values[field.name] = kind(source[field.name])
                except (TypeError, ValueError):
                    raise SettingsInvalid(
                        f"train.{field.name} is {source[field.name]!r}, not a number"
                    ) from None
            elif field.default is dataclasses.MISSING:
                raise SettingsInvalid(f"train.{field.name} is missing")
        return cls(**values)
