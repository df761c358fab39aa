"""What the frames that a model lacks have in common."""

from __future__ import annotations

from typing import Any

import pytest

from worker_agent.stages.sfm_missing import explain_missing


def rows(count: int, chapter: int = 1000) -> list[dict[str, Any]]:
    """At 2 a second, a new clip after `chapter` frames."""
    return [
        {"name": f"f{i}", "clip": f"GX0{1 + i // chapter}.MP4", "time_s": 0.5 * (i % chapter)}
        for i in range(count)
    ]


def placed(*kept: range) -> set[str]:
    return {f"f{i}" for numbers in kept for i in numbers}


def test_the_rest_of_a_clip_is_told_by_its_times() -> None:
    said = explain_missing(rows(40), placed(range(20)), {})
    assert said is not None
    assert said[0] == "the others are of 10.0 to 19.5 s of GX01.MP4"
    assert "segments of their own" in said[1]


def test_a_stretch_ends_with_its_clip() -> None:
    said = explain_missing(rows(40, chapter=25), placed(range(10), range(30, 40)), {})
    assert said is not None
    assert said[0] == "the others are of 5.0 to 12.0 s of GX01.MP4 and 0.0 to 2.0 s of GX02.MP4"


def test_frames_that_show_nothing_are_called_that() -> None:
    flaws = {f"f{i}": "dark" for i in range(21, 40)} | {"f20": "blurred", "f3": "blurred"}
    said = explain_missing(rows(40), placed(range(20)), flaws)
    assert said == (
        "19 of the 20 others are dark",
        "Leave the dark part of the clip out.",
    )


@pytest.mark.parametrize(
    "kept",
    [
        range(0, 40, 2),  # every second one
        range(40),
        range(0),
        [i for i in range(40) if i % 10 < 6],  # more gaps than anybody cuts a clip at
    ],
)
def test_what_is_missing_here_and_there_has_no_place(kept: Any) -> None:
    assert explain_missing(rows(40), {f"f{i}" for i in kept}, {}) is None
