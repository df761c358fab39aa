"""What a segment will be, from what its clips show or, unseen, from their bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.estimate import ASSUMED_BITS_S, ASSUMED_SIZE, ClipSize, frames_of, pixels_of

SEEN = ClipSize(bytes=10**9, seconds=60.0, width=3840, height=2160)
UNSEEN = ClipSize(bytes=int(ASSUMED_BITS_S / 8 * 90))


def test_frames_follow_the_length_of_each_clip() -> None:
    assert frames_of([SEEN], 5.0) == 300
    assert frames_of([SEEN, SEEN], 0.5) == 60
    assert frames_of([ClipSize(bytes=1, seconds=0.01)], 5.0) == 1
    assert frames_of([UNSEEN], 2.0) == 180
    assert frames_of([], 5.0) == 0


def test_pixels_are_those_of_the_scaled_frame() -> None:
    assert pixels_of([SEEN], 960, None) == 960 * 540
    assert pixels_of([SEEN], None, 1080) == 1920 * 1080
    assert pixels_of([SEEN], 9999, None) == 3840 * 2160, "never enlarged"
    assert pixels_of([UNSEEN], None, None) == ASSUMED_SIZE[0] * ASSUMED_SIZE[1]
    assert pixels_of([], 960, None) == 0


@given(
    seconds=st.none() | st.floats(0.0, 1e6),
    width=st.none() | st.integers(1, 10_000),
    height=st.none() | st.integers(1, 10_000),
    box=st.tuples(st.none() | st.integers(64, 9000), st.none() | st.integers(64, 9000)),
)
def test_whatever_is_known_a_clip_is_some_work(
    seconds: float | None,
    width: int | None,
    height: int | None,
    box: tuple[int | None, int | None],
) -> None:
    clip = ClipSize(bytes=1000, seconds=seconds, width=width, height=height)
    assert frames_of([clip], 5.0) >= 1
    assert pixels_of([clip], *box) >= 1
