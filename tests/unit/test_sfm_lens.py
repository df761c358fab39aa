"""One parameter of the lens more, or not; a focal length that was given, beside what was found."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from worker_agent.stages.sfm_lens import FocalPrior, combined, worth_parameters

focals = st.floats(100.0, 5000.0)
deviations = st.floats(1e-4, 0.3)


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
    assert worth_parameters(simple_px, full_px, residuals) is worth


def test_two_parameters_must_explain_twice_as_much_and_what_was_known_counts() -> None:
    gain = 1.5 * math.log(2000)
    full = math.exp(-gain / 4000)
    assert worth_parameters(1.0, full, 2000)
    assert not worth_parameters(1.0, full, 2000, more=2)
    assert worth_parameters(1.0, full, 2000, more=2, known=gain / 2)


@given(focals, deviations, focals, deviations)
def test_two_measurements_meet_between_them_surer_than_either(
    one: float, its: float, two: float, other: float
) -> None:
    apart = abs(math.log(one / two)) / math.hypot(its, other)
    assume(abs(apart - 3) > 1e-6)
    both = combined(FocalPrior(one, its), FocalPrior(two, other))
    if apart > 3:
        assert both is None
        return
    assert both is not None
    assert min(one, two) * (1 - 1e-9) <= both.focal_px <= max(one, two) * (1 + 1e-9)
    assert both.deviation <= min(its, other)
    nearer_one = abs(math.log(both.focal_px / one)) <= abs(math.log(both.focal_px / two)) + 1e-9
    assert nearer_one == (its <= other) or one == pytest.approx(two) or its == pytest.approx(other)


def test_frames_that_tell_nothing_leave_a_given_lens_as_it_is() -> None:
    both = combined(FocalPrior(300.0, math.inf), FocalPrior(533.0, 0.02))
    assert both == FocalPrior(pytest.approx(533.0), pytest.approx(0.02))
