"""Which frames are kept, and what a frame is said to show."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker_agent.stages.frame_quality import FrameQuality, judge_frames, measure, warnings
from worker_agent.stages.keyframes import Look, Selection, shift

F32 = npt.NDArray[np.float32]
HEIGHT, WIDTH = 200, 400


def ground(seed: int = 0, width: int = 900) -> F32:
    """Random structure from 2 to 64 pixels, 0 to 255."""
    rng = np.random.default_rng(seed)
    total = np.zeros((HEIGHT, width))
    for size in (2, 4, 8, 16, 32, 64):
        cells = rng.standard_normal((HEIGHT // size + 2, width // size + 2))
        total += np.kron(cells, np.ones((size, size)))[:HEIGHT, :width]
    return np.clip(128 + 22 * total, 0, 255).astype(np.float32)


GROUND = ground()


def view(left: float) -> F32:
    """The ground from `left` on, between pixels by interpolation."""
    whole = int(left)
    share = np.float32(left - whole)
    one, two = GROUND[:, whole : whole + WIDTH], GROUND[:, whole + 1 : whole + 1 + WIDTH]
    return (1 - share) * one + share * two


@pytest.mark.parametrize("pixels", [0.0, 0.5, 1.0, 3.25, 7.0, 15.0, 21.0])
def test_shifts_are_measured_to_a_fraction_of_a_pixel(pixels: float) -> None:
    found = shift(view(10.0), view(10.0 + pixels))
    assert found is not None
    assert found * WIDTH == pytest.approx(pixels, abs=0.3)


def test_pictures_with_nothing_in_common_have_no_shift() -> None:
    rng = np.random.default_rng(3)
    one, two = (rng.uniform(0, 255, (HEIGHT, WIDTH)).astype(np.float32) for _ in range(2))
    assert shift(one, two) is None
    assert shift(0 * one, 0 * one) is None


def kept(positions: list[float], sharpness: list[float], **named: float) -> list[int]:
    chosen = Selection(named.get("step", 0.02), named.get("shortest_s", 0.1))
    found: list[int] = []
    for index, (left, sharp) in enumerate(zip(positions, sharpness, strict=True)):
        found += chosen.add(Look(index, index / 10, view(left), sharp))
    return found + chosen.end()


def test_the_sharpest_near_each_step_is_kept() -> None:
    positions = [2.0 * i for i in range(14)]  # 0.5 % each: a step is 4 frames
    sharp = [1.0] * 14
    sharp[5], sharp[9] = 2.0, 2.0
    assert kept(positions, sharp, shortest_s=0.2) == [0, 5, 9, 13]


def test_a_vehicle_that_hovers_gives_one_frame() -> None:
    assert kept([5.0] * 30, [1.0] * 30) == [0]


def test_one_that_creeps_gives_some_all_the_same() -> None:
    found = kept([0.1 * i for i in range(60)], [1.0] * 60, shortest_s=0.2)
    assert 4 <= len(found) <= 8


def test_no_two_frames_are_closer_than_the_frame_rate_says() -> None:
    assert kept([12.0 * i for i in range(20)], [1.0] * 20, shortest_s=0.2) == list(range(0, 20, 2))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 20), min_size=1, max_size=25), st.randoms(use_true_random=False))
def test_what_is_kept_is_in_order_and_once(steps: list[float], random: object) -> None:
    positions = np.cumsum(steps) % 400
    found = kept(list(positions), [random.random() for _ in steps])  # type: ignore[attr-defined]
    assert found[0] == 0
    assert found == sorted(set(found))
    assert found[-1] < len(steps)


def test_pictures_are_told_apart() -> None:
    def flaw(picture: F32) -> str | None:
        return measure(picture.astype(np.float32)).flaw

    rng = np.random.default_rng(2)
    noise = rng.normal(0, 4, GROUND.shape)
    kernel = np.ones(25) / 25
    blurred = GROUND
    for axis in (0, 1):
        for _ in range(2):
            blurred = np.apply_along_axis(np.convolve, axis, blurred, kernel, "same")
    assert flaw(GROUND) is None
    assert flaw(0.2 * GROUND) is None  # dark, but all is there
    assert flaw(0.01 * GROUND) == "dark"
    assert flaw(np.minimum(255, 254 + 0.01 * GROUND)) == "overexposed"
    assert flaw(120 + 0.01 * (GROUND - 120) + noise) == "turbid"
    assert flaw(blurred[40:-40, 40:-40]) == "blurred"


def quality(**changes: float) -> FrameQuality:
    values = {
        "brightness": 120.0, "under": 0.0, "over": 0.0, "texture": 8.0, "fine": 4.0,
        "sharpness": 10.0,
    }  # fmt: skip
    return FrameQuality(**(values | changes))


def test_half_of_the_frames_may_be_bad() -> None:
    good, bad = quality(), quality(texture=0.5, brightness=3.0)
    assert judge_frames([good, bad], "a.mp4") is None
    refusal = judge_frames([good, bad, bad], "a.mp4")
    assert refusal is not None
    assert refusal.message == "a.mp4: 2 of 3 frames are black or nearly so"
    assert refusal.evidence["dark"] == 2
    assert warnings([good, good]) == []
    assert "1 of 2 frames are dark" in warnings([good, bad])[0]
    assert "underexposed" in warnings([quality(under=0.7)] * 2)[0]
