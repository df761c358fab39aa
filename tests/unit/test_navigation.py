"""A vehicle's log is read by its header, in its own units, or refused with file and line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_agent.stages.frame_records import join
from worker_agent.stages.navigation import (
    NavError,
    NavLog,
    NavSample,
    clip_starts,
    on_timeline,
    parse_log,
)

START = 1_777_890_600.0  # 2026-05-04T10:30:00Z


def log(*lines: str) -> NavLog:
    return parse_log("\n".join(lines), "nav.csv")


def test_columns_are_found_by_name_and_unit_in_any_order() -> None:
    read = log(
        "# exported by hand",
        "Depth (ft);heading_deg;Latitude;lon_deg;time_utc;DVL_altitude [cm];sigma_m",
        "10;181.5;45.5;-9.25;2026-05-04T10:30:00.5Z;150;0.3",
        "10;181.5;45.6;-9.25;2026-05-04T12:30:01+02:00;;",
    )
    assert (read.clock, read.frame) == ("utc", "wgs84")
    first, second = read.samples
    assert first == NavSample(START + 0.5, (45.5, -9.25, pytest.approx(-3.048)), 0.3, 3.048, 1.5)
    assert second.time_s == START + 1
    assert (second.altitude_m, second.sigma_m) == (None, None)


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("t_s,north_m,east_m,down_m", "0,1,2,3", (2.0, 1.0, -3.0)),
        ("t_s,x_ned_m,y_ned_m,z_ned_m", "0,1,2,3", (2.0, 1.0, -3.0)),
        ("t_s,x_enu_m,y_enu_m,z_enu_m", "0,1,2,3", (1.0, 2.0, 3.0)),
        ("t_ms,easting_cm,northing_cm,depth_m", "0,100,200,3", (1.0, 2.0, -3.0)),
        ("t_s,lat_rad,lon_rad,alt_m", "0,0.5,0.25,7", (28.6478898, 14.3239449, 7.0)),
    ],
)
def test_every_frame_of_reference_becomes_east_north_up(
    header: str, row: str, expected: tuple[float, ...]
) -> None:
    read = log(header, row)
    assert read.clock == "clip"
    assert read.frame == ("wgs84" if "lat" in header else "enu")
    assert read.samples[0].position == pytest.approx(expected)


@pytest.mark.parametrize(
    ("lines", "where", "what"),
    [
        ([""], "1", "empty"),
        (["t_s,depth_m"], "1", "no row"),
        (["depth_m,lat,lon", "1,2,3"], "1", "no column of time"),
        (["t_s,unix_s,depth_m", "1,2,3"], "1", "two columns of time"),
        (["t_s,heading_deg", "1,2"], "1", "no column of use"),
        (["t_s,depth", "1,2"], "1", "'depth' has no unit"),
        (["t_s,depth_parsec", "1,2"], "1", "'parsec'"),
        (["t_s,lat,depth_m", "1,2,3"], "1", "lon is missing"),
        (["t_s,lat,lon", "1,2,3"], "1", "need a height"),
        (["t_s,x_m,y_m,z_m", "1,2,3,4"], "1", "x_ned_m"),
        (["t_s,depth_m,Depth [ft]", "1,2,3"], "1", "two columns say depth"),
        (["t_s,depth_m", "0,1", "", "1,deep"], "4", "depth is 'deep'"),
        (["t_s,depth_m", "0,1", "1,inf"], "3", "not a finite number"),
        (["t_s,depth_m", "0,1", ",2"], "3", "no time"),
        (["t_s,depth_m", "5,1", "4.5,1"], "3", "time goes back by 0.5 s"),
        (["utc,depth_m", "yesterday,1"], "2", "utc is 'yesterday'"),
        (["t_s,lat,lon,alt_m", "0,91,0,0"], "2", "not on the earth"),
    ],
)
def test_what_cannot_be_read_is_told_by_file_and_line(
    lines: list[str], where: str, what: str
) -> None:
    with pytest.raises(NavError) as caught:
        log(*lines)
    message = str(caught.value)
    assert message.startswith(f"nav.csv:{where}: ")
    assert what in message and "\n" not in message


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        parse_log(text, "nav.csv")
    except NavError as error:
        assert str(error).startswith("nav.csv:")


def test_what_was_not_measured_is_not_there() -> None:
    read = log(
        "t_s,lat,lon,alt_m,altitude_m",
        "0,0,0,0,0",  # no fix; the altimeter sees no ground
        "1,45,9,nan,-1",
        "2,45,9,1,0.5",
    )
    assert [sample.position for sample in read.samples] == [None, None, (45.0, 9.0, 1.0)]
    assert [sample.altitude_m for sample in read.samples] == [None, None, 0.5]


def test_a_frozen_position_counts_once() -> None:
    rows = [f"{t},{min(t, 4)},0,{0.1 * t:g},7" for t in range(31)]
    read = log("t_s,north_m,east_m,down_m,depth_m", *rows)
    there = [s.time_s for s in read.samples if s.position is not None]
    assert there == list(range(31))  # the height still moves: it is measured
    read = log("t_s,north_m,east_m,down_m,depth_m", *(f"{t},{min(t, 4)},0,1,7" for t in range(31)))
    assert [s.time_s for s in read.samples if s.position is not None] == [0, 1, 2, 3, 4]
    assert [s.time_s for s in read.samples if s.depth_m is not None] == [0]


def test_chapters_follow_each_other_and_other_clips_have_their_own_time() -> None:
    clips = [
        ("000-GX010042.MP4", 60.0, 1000.0),
        ("001-GX020042.MP4", 60.0, 1003.0),  # the camera writes anything there
        ("002-GX010043.MP4", 60.0, 2000.0),
        ("003-dive.MP4", 60.0, None),
    ]
    assert clip_starts(clips) == [1000.0, 1060.0, 2000.0, None]


def test_utc_becomes_the_clips_own_time_with_the_offset_of_the_clocks() -> None:
    read = log("unix_s,depth_m", *(f"{START + t},{t}" for t in range(100)))
    samples = on_timeline(
        read, start_s=START + 3620.0, duration_s=10.0, offset_s=3600.0, margin_s=2.0
    )
    assert [sample.depth_m for sample in samples] == list(range(18, 33))
    assert samples[2].time_s == 0.0
    assert on_timeline(read, start_s=None, duration_s=10.0, offset_s=0.0, margin_s=2.0) == []


def test_altitudes_become_those_of_the_camera() -> None:
    read = log("t_s,altitude_m", "0,2.0", "1,")
    found = on_timeline(read, start_s=None, duration_s=1.0, offset_s=0.0, margin_s=1.0, lift_m=0.4)
    assert [sample.altitude_m for sample in found] == [2.4, None]


def records(samples: list[dict[str, object]], *times: float) -> list[dict[str, object]]:
    blank = {"position": None, "sigma_m": None, "depth_m": None, "altitude_m": None}
    clip = {
        "name": "a",
        "gps": [{"time_s": t, "lat": 1.0, "lon": 2.0, "alt": 3.0} for t in (0.0, 100.0)],
        "gravity": [],
        "readings": {},
        "navigation": {"frame": "enu", "samples": [blank | sample for sample in samples]},
    }
    frames = [{"name": f"f{i}", "clip": "a", "time_s": t} for i, t in enumerate(times)]
    return join(frames, [clip], max_gap_s=3.0)


def test_frames_get_positions_between_samples_and_nothing_beyond_them() -> None:
    rows = records(
        [
            {"time_s": 1.0, "position": [0.0, 0.0, -5.0], "sigma_m": 0.5, "altitude_m": 2.0},
            {"time_s": 3.0, "position": [4.0, 0.0, -7.0], "sigma_m": 1.5},
            {"time_s": 9.0, "position": [9.0, 0.0, -7.0], "sigma_m": 1.5},
        ],
        *(0.9, 1.0, 2.0, 5.0, 9.0, 9.1),
    )
    where = [row["position"] for row in rows]
    assert where[2] == {
        "at": [2.0, 0.0, -6.0],
        "frame": "enu",
        "sigma_m": 1.0,
        "source": "navigation",
    }
    assert [one is not None for one in where] == [False, True, True, False, True, False]
    assert [row["altitude_m"] for row in rows] == [None, 2.0, None, None, None, None]
    # One frame of reference for all: the camera's GPS does not fill the gaps of the log.
    assert {row["gps"] for row in rows} == {None}


def test_without_positions_in_the_log_those_of_the_camera_count() -> None:
    rows = records([{"time_s": 0.0, "depth_m": 5.0}, {"time_s": 2.0, "depth_m": 6.0}], 1.0)
    assert rows[0]["depth_m"] == 5.5
    assert rows[0]["position"] is None  # 100 s without a fix
    (row,) = records([{"time_s": 0.0, "depth_m": 5.0}], 100.0)
    assert row["position"] == {
        "at": [1.0, 2.0, 3.0],
        "frame": "wgs84",
        "sigma_m": None,
        "source": "gps",
    }
