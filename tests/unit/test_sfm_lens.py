"""One parameter of the lens more, or not."""

from __future__ import annotations

import pytest

from worker_agent.stages.sfm_lens import worth_a_parameter


@pytest.mark.parametrize(
    ("simple_px", "full_px", "residuals", "worth"),
    [
        (0.266678, 0.266678, 71_000, False),
        (0.270669, 0.270655, 70_318, False),  # what a lens without any gains by chance
        (0.280, 0.270, 70_318, True),
        (0.280, 0.270, 40, False),  # the same from three images says nothing
        (3.0, 0.5, 2000, True),
    ],
)
def test_it_must_explain_more_than_chance(
    simple_px: float, full_px: float, residuals: int, worth: bool
) -> None:
    assert worth_a_parameter(simple_px, full_px, residuals) is worth
