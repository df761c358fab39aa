"""Pass, warn or fail: a finished segment's figures against the thresholds of the settings. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["FIGURES", "Verdict", "judge"]

# Figure -> (what it is, unit, whether higher is better).
FIGURES: Mapping[str, tuple[str, str, bool]] = {
    "psnr": ("PSNR of the held-out views", " dB", True),
    "ssim": ("SSIM of the held-out views", "", True),
    "lpips": ("LPIPS of the held-out views", "", False),
    "registered_share": ("share of frames registered", "", True),
    "reprojection_px": ("reprojection error", " px", False),
    "gravity_spread_deg": ("disagreement of the gravity readings", " degrees", False),
    "turning_error_deg": ("disagreement with the camera's gyroscopes", " degrees", False),
    "drift_m": ("drift against the positions", " m", False),
    "gaussians": ("number of gaussians", "", True),
}
_LEVELS = ("fail", "warn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    level: str  # pass | warn | fail
    findings: tuple[str, ...]  # one line each, the worst first

    def to_dict(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """As `output/verdict.json`, with every figure it was judged by."""
        return {
            "verdict": self.level,
            "findings": list(self.findings),
            "figures": {name: figures.get(name) for name in (*FIGURES, "floaters")},
        }


def judge(
    figures: Mapping[str, Any], thresholds: Mapping[str, Mapping[str, float | None]]
) -> Verdict:
    """`thresholds`: figure -> {"warn": bound, "fail": bound}, None for no bound. What was not
    measured (None) passes."""
    found: dict[str, list[str]] = {level: [] for level in _LEVELS}
    for name, (words, unit, higher_is_better) in FIGURES.items():
        value = figures.get(name)
        if value is None:
            continue
        for level in _LEVELS:
            bound = thresholds.get(name, {}).get(level)
            # Written so that a figure that is no number misses every bound.
            if bound is None or (value >= bound if higher_is_better else value <= bound):
                continue
            side = "below" if higher_is_better else "above"
            found[level].append(f"{words} is {value:g}{unit}, {side} {bound:g} (verdict.{name})")
            break
    level = next((level for level in _LEVELS if found[level]), "pass")
    return Verdict(level=level, findings=tuple(line for level in _LEVELS for line in found[level]))
