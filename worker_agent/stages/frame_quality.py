"""What one frame shows, in plain numbers, and whether a clip's frames are of use. Pure.

Structure is measured in bands, on a picture reduced to about 480 pixels: averaging takes the noise
of a sensor out of the coarser bands, so that murk with noise in it does not count as texture.
Thresholds come from real and rendered footage: sharp clips, clear or murky, have a `fine` of half
their `texture`, a clip blurred until nothing registers a fifth; texture is 5 to 12 grey levels in
usable footage, 0.8 at a sixteenth of its contrast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from worker_agent.messages import FailureCode

__all__ = ["ANALYSED_WIDTH", "FrameQuality", "Unusable", "judge_frames", "measure", "summary"]

F32 = npt.NDArray[np.float32]

ANALYSED_WIDTH = 480
MIN_TEXTURE = 1.0  # grey levels of 255
MIN_FINE_SHARE = 0.2  # of the texture, in the finer band: below it the picture is blurred
MAX_NOISE_SHARE = 6.0  # of the texture, in the finest differences: above it there is only noise
DARK_MEAN = 30.0
CLIPPED_LOW, CLIPPED_HIGH = 8.0, 250.0
MAX_CLIPPED_SHARE = 0.5  # of a frame's pixels
MURKY_TEXTURE = 2.0  # told, as it still registers
MAX_BAD_SHARE = 0.5  # of the frames

CAUSES = ("dark", "overexposed", "turbid", "blurred")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameQuality:
    """Grey levels of 255, shares of 1."""

    brightness: float
    under: float  # share of pixels that are black
    over: float  # share of pixels that are white
    texture: float  # structure of about 8 to 40 pixels of the analysed picture
    fine: float  # structure of about 2 to 6 pixels
    sharpness: float  # of neighbouring pixels; also what noise there is

    @property
    def flaw(self) -> str | None:
        """One of CAUSES when nothing can be matched on this frame."""
        if self.texture < MIN_TEXTURE:
            if self.brightness < DARK_MEAN:
                return "dark"
            return "overexposed" if self.over > MAX_CLIPPED_SHARE else "turbid"
        if self.fine < MIN_FINE_SHARE * self.texture:
            return "blurred"
        return "turbid" if self.sharpness > MAX_NOISE_SHARE * self.texture else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusable:
    reason: FailureCode
    message: str
    advice: str
    evidence: dict[str, Any]


_WORDS = {
    "dark": ("black or nearly so", "The lens cap was on, or the lights were off"),
    "overexposed": ("overexposed", "The lights or the exposure were too strong"),
    "turbid": (
        "without texture: murk or open water",
        "The water was too turbid, or the ground out of sight: film closer to it, or light from "
        "the side",
    ),
    "blurred": ("blurred", "The lens was out of focus, wet or fogged, or the exposure too long"),
}


def measure(grey: F32) -> FrameQuality:
    """`grey` (H, W) in 0 to 255, about ANALYSED_WIDTH wide."""
    half = _reduced(grey, 2)
    quarter = _reduced(grey, 4)
    second = (
        4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    )
    return FrameQuality(
        brightness=round(float(grey.mean()), 2),
        under=round(float((grey <= CLIPPED_LOW).mean()), 4),
        over=round(float((grey >= CLIPPED_HIGH).mean()), 4),
        texture=round(float(np.abs(quarter - _smoothed(quarter, 2)).mean()), 4),
        fine=round(float(np.abs(half - _smoothed(half, 1)).mean()), 4),
        sharpness=round(float(np.abs(second).mean()), 4),
    )


def judge_frames(qualities: Sequence[FrameQuality], names: str) -> Unusable | None:
    """Why frames like these cannot be reconstructed; None when most of them are of use. `names`
    is what the operator calls the clips."""
    flaws = [quality.flaw for quality in qualities]
    counts = {cause: flaws.count(cause) for cause in CAUSES if cause in flaws}
    bad = sum(counts.values())
    if bad <= MAX_BAD_SHARE * len(qualities):
        return None
    worst = max(counts, key=lambda cause: counts[cause])
    what, why = _WORDS[worst]
    return Unusable(
        reason=FailureCode.FRAMES_UNUSABLE,
        message=f"{names}: {counts[worst]} of {len(qualities)} frames are {what}",
        advice=f"Look at the clip: {why[0].lower()}{why[1:]}. Leave it out.",
        evidence={**counts, "frames": len(qualities), **summary(qualities)},
    )


def warnings(qualities: Sequence[FrameQuality]) -> list[str]:
    """What the operator should know of frames that are used all the same."""
    total = len(qualities)
    said = []
    bad = sum(quality.flaw is not None for quality in qualities)
    if bad:
        said.append(f"{bad} of {total} frames are dark, overexposed, blurred or without texture")
    under = sum(q.under > MAX_CLIPPED_SHARE for q in qualities)
    over = sum(q.over > MAX_CLIPPED_SHARE for q in qualities)
    if under + over > MAX_BAD_SHARE * total:
        side = "underexposed" if under >= over else "overexposed"
        said.append(f"{under + over} of {total} frames are {side} in more than half of the picture")
    murky = float(np.median([quality.texture for quality in qualities]))
    if bad <= MAX_BAD_SHARE * total and murky < MURKY_TEXTURE:
        said.append(
            f"the water is turbid: the median frame has a texture of {murky:.1f} grey levels, "
            "clear footage has 5 and more"
        )
    return said


def summary(qualities: Sequence[FrameQuality]) -> dict[str, float]:
    """Medians over the frames, for reports."""
    keys = ("brightness", "under", "over", "texture", "fine", "sharpness")
    return {
        f"{key}_median": round(float(np.median([getattr(q, key) for q in qualities])), 4)
        for key in keys
    }


def _reduced(grey: F32, factor: int) -> F32:
    """Means of squares of `factor` pixels."""
    height, width = (side // factor for side in grey.shape)
    cut = grey[: height * factor, : width * factor]
    means: F32 = cut.reshape(height, factor, width, factor).mean(axis=(1, 3))
    return means


def _smoothed(grey: F32, reach: int) -> F32:
    """Mean of the square of 2 reach + 1 pixels around each."""
    side = 2 * reach + 1
    padded = np.pad(grey.astype(np.float64), reach, mode="edge")
    total = np.zeros((padded.shape[0] + 1, padded.shape[1] + 1))
    total[1:, 1:] = padded.cumsum(axis=0).cumsum(axis=1)
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    smooth: F32 = (sums / side**2).astype(np.float32)
    return smooth
