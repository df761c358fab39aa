"""The manifest's arithmetic: interpolation in time and the first camera model."""

from __future__ import annotations

import math

import pytest

from worker_agent.protocol import FailureCode
from worker_agent.stages.api import StageFailure
from worker_agent.stages.frame_records import interpolate, join
from worker_agent.stages.manifest import camera_guess

SOURCE, FRAME = (1920, 1080), (960, 540)


def test_values_between_two_samples_are_linear() -> None:
    track = [(0.0, 10.0, 0.0), (2.0, 20.0, 4.0)]
    assert interpolate(track, 0.5, 3.0) == [12.5, 1.0]
    assert interpolate(track, 2.0, 3.0) == [20.0, 4.0]


@pytest.mark.parametrize(
    ("time_s", "expected"), [(-1.0, [1.0]), (11.5, [2.0]), (-4.0, None), (14.0, None), (5.0, None)]
)
def test_a_value_holds_only_near_a_sample(time_s: float, expected: list[float] | None) -> None:
    assert interpolate([(0.0, 1.0), (10.0, 2.0)], time_s, 3.0) == expected


def test_no_samples_and_samples_of_one_instant() -> None:
    assert interpolate([], 1.0, 3.0) is None
    assert interpolate([(1.0, 5.0), (1.0, 7.0)], 1.0, 3.0) == [5.0]


def test_frames_get_the_telemetry_of_their_own_clip() -> None:
    def fix(time_s: float, lat: float) -> dict[str, float]:
        return {"time_s": time_s, "lat": lat, "lon": 8.0, "alt": 1.0, "fix": 3}

    def down(time_s: float, x: float, y: float) -> dict[str, float]:
        return {"time_s": time_s, "x": x, "y": y, "z": 0.0}

    rows = join(
        [
            {"name": "f000001.jpg", "clip": "one", "time_s": 0.5},
            {"name": "f000002.jpg", "clip": "two", "time_s": 0.5},
            {"name": "f000003.jpg", "clip": "bare", "time_s": 0.5},
        ],
        [
            {
                "name": "one",
                "gps": [fix(0, 1.0), fix(1, 2.0)],
                "gravity": [down(0, 1, 0), down(1, 0, 1)],
                "readings": {"iso": [[0.0, 100.0], [1.0, 200.0]], "shutter_s": [[9.0, 0.01]]},
            },
            {"name": "two", "gps": [fix(0, 50.0)], "gravity": [], "readings": {}},
        ],
        max_gap_s=3.0,
    )
    assert [row["gps"] for row in rows] == [[1.5, 8.0, 1.0], [50.0, 8.0, 1.0], None]
    assert rows[0]["gravity"] == pytest.approx([math.sqrt(0.5), math.sqrt(0.5), 0.0])
    assert rows[1]["gravity"] is None
    # No shutter within reach of that frame.
    assert [row["readings"] for row in rows] == [{"iso": 150.0}, {}, {}]


def test_without_parameters_the_camera_is_a_marked_guess() -> None:
    camera = camera_guess("auto", None, SOURCE, FRAME)
    assert camera["model"] == "SIMPLE_RADIAL"
    assert camera["params"] == [pytest.approx(864.0), 480.0, 270.0, 0.0]
    assert (camera["source"], camera["prior_focal"]) == ("guess", False)


@pytest.mark.parametrize("params", [[1243.6, 960, 540, 0.362, 0.248], "1243.6,960,540,0.362,0.248"])
def test_a_calibration_at_source_size_is_scaled_to_the_frames(params: list[float] | str) -> None:
    camera = camera_guess("RADIAL", params, SOURCE, FRAME)
    assert camera["params"] == pytest.approx([621.8, 480.0, 270.0, 0.362, 0.248])
    assert (camera["source"], camera["prior_focal"]) == ("config", True)


def test_both_focal_lengths_are_scaled_and_distortion_is_not() -> None:
    given = [1000.0, 1100.0, 960.0, 540.0, 0.1, 0.2, 0.3, 0.4]
    camera = camera_guess("OPENCV", given, SOURCE, (960, 270))
    assert camera["params"] == pytest.approx([500.0, 275.0, 480.0, 135.0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ("model", "params", "words"),
    [
        ("FISHY", None, "sfm.camera_model"),
        ("auto", [1.0, 2.0, 3.0], "is auto"),
        ("PINHOLE", [1.0, 2.0, 3.0], "PINHOLE takes 4"),
        ("SIMPLE_PINHOLE", "a,b,c", "not a list of numbers"),
        ("SIMPLE_PINHOLE", [float("nan"), 2.0, 3.0], "not finite"),
        ("SIMPLE_PINHOLE", [-5.0, 2.0, 3.0], "not positive"),
    ],
)
def test_a_wrong_camera_setting_is_named(
    model: str, params: list[float] | str | None, words: str
) -> None:
    with pytest.raises(StageFailure, match=words) as caught:
        camera_guess(model, params, SOURCE, FRAME)
    assert caught.value.reason is FailureCode.CONFIG_INVALID
    assert caught.value.advice
