"""Pass, warn and fail by thresholds."""

from __future__ import annotations

import math

import pytest

from dispatcher.stage_settings import VerdictConfig
from worker_agent.stages.verdict import FIGURES, judge

DEFAULTS = VerdictConfig().model_dump()
GOOD = {
    "psnr": 26.0, "ssim": 0.9, "registered_share": 1.0, "reprojection_px": 0.6,
    "gravity_spread_deg": 0.2, "drift_m": 1.0, "gaussians": 30_000,
}  # fmt: skip


def test_the_settings_know_every_figure() -> None:
    assert set(DEFAULTS) == set(FIGURES)


def test_good_figures_pass_and_unmeasured_ones_do() -> None:
    assert judge(GOOD, DEFAULTS).level == "pass"
    assert judge(dict.fromkeys(FIGURES), DEFAULTS).level == "pass"
    assert judge({"psnr": 1.0}, {}).level == "pass"


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        ({"psnr": 21.9}, "warn", "PSNR of the held-out views is 21.9 dB, below 22"),
        ({"psnr": 14.0}, "fail", "below 15 (verdict.psnr)"),
        ({"psnr": math.nan}, "fail", "is nan dB"),
        ({"reprojection_px": 1.6}, "warn", "above 1.5"),
        ({"gravity_spread_deg": 11.0}, "fail", "above 10"),
        ({"drift_m": 1e6}, "warn", "drift"),
        ({"registered_share": 0.4}, "fail", "registered"),
    ],
)
def test_each_bound_is_kept(change: dict[str, float], level: str, words: str) -> None:
    verdict = judge(GOOD | change, DEFAULTS)
    assert verdict.level == level
    assert len(verdict.findings) == 1 and words in verdict.findings[0]


def test_the_worst_comes_first() -> None:
    verdict = judge(GOOD | {"psnr": 20.0, "reprojection_px": 9.0}, DEFAULTS)
    assert verdict.level == "fail"
    assert ["reprojection" in line for line in verdict.findings] == [True, False]
