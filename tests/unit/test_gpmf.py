"""GoPro telemetry: what is parsed, and above all what must not count as a position."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_agent.stages.gpmf import TimedPayload, read_telemetry
from worker_agent.stages.klv import GpmfError, parse, read_settings
from worker_agent.stages.metadata import split_payloads


def klv(key: str, kind: str, size: int, repeat: int, data: bytes) -> bytes:
    padding = b"\0" * (-len(data) % 4)
    return struct.pack(">4sBBH", key.encode(), ord(kind), size, repeat) + data + padding


def nest(key: str, *children: bytes) -> bytes:
    body = b"".join(children)
    return klv(key, "\0", 1, len(body), body)


def name(text: str) -> bytes:
    return klv("DVNM", "c", 1, len(text), text.encode())


def gps5(rows: list[tuple[float, float, float]], fix: int, dilution: float) -> bytes:
    scale = (10_000_000, 10_000_000, 1000, 1000, 100)
    data = b"".join(
        struct.pack(">5i", *(round(v * s) for v, s in zip((*row, 0.5, 0.5), scale, strict=True)))
        for row in rows
    )
    return nest(
        "STRM",
        klv("GPSF", "L", 4, 1, struct.pack(">I", fix)),
        klv("GPSP", "S", 2, 1, struct.pack(">H", round(dilution * 100))),
        klv("SCAL", "l", 4, 5, struct.pack(">5i", *scale)),
        klv("GPS5", "l", 20, len(rows), data),
    )


def gps9(lat: float, lon: float, fix: int, dilution: float) -> bytes:
    scale = (10_000_000, 10_000_000, 1000, 1000, 100, 1, 1000, 100, 1)
    row = struct.pack(
        ">7i2H",
        round(lat * 1e7),
        round(lon * 1e7),
        12_500,
        0,
        0,
        9000,
        45_000_000,
        round(dilution * 100),
        fix,
    )
    return nest(
        "STRM",
        klv("TYPE", "c", 1, 9, b"lllllllSS"),
        klv("SCAL", "l", 4, 9, struct.pack(">9i", *scale)),
        klv("GPS9", "?", 32, 1, row),
    )


def gravity(*rows: tuple[float, float, float]) -> bytes:
    data = b"".join(struct.pack(">3h", *(round(v * 32767) for v in row)) for row in rows)
    return nest(
        "STRM",
        klv("SCAL", "s", 2, 1, struct.pack(">h", 32767)),
        klv("GRAV", "s", 6, len(rows), data),
    )


def payload(*streams: bytes, time_s: float = 0.0) -> TimedPayload:
    return TimedPayload(time_s, 1.0, nest("DEVC", name("HERO10 Black"), *streams))


def test_a_fix_is_read_with_its_scale_and_its_time_within_the_payload() -> None:
    rows = [(42.34, -8.75, 12.5), (42.35, -8.76, 13.5)]
    found = read_telemetry([payload(gps5(rows, fix=3, dilution=2.1), time_s=7.0)])
    assert found.device == "HERO10 Black"
    assert [(g.time_s, g.lat, g.lon, g.alt, g.fix) for g in found.gps] == [
        (7.0, pytest.approx(42.34), pytest.approx(-8.75), pytest.approx(12.5), 3),
        (7.5, pytest.approx(42.35), pytest.approx(-8.76), pytest.approx(13.5), 3),
    ]
    assert found.gps_note == ""


@pytest.mark.parametrize(
    ("rows", "fix", "dilution"),
    [
        ([(0.0, 0.0, 0.0)], 0, 99.99),  # a camera under water
        ([(42.1771847, -1.132886, 300.0)], 0, 99.99),  # the last position of yesterday
        ([(42.1771847, -1.132886, 300.0)], 3, 55.0),  # a fix that says it is worth nothing
        ([(0.0, 0.0, 0.0)], 3, 1.0),  # a receiver that has not filled in its record yet
        ([(0.0, 200.0, 0.0)], 3, 1.0),
    ],
)
def test_a_position_without_a_fix_is_no_position(
    rows: list[tuple[float, float, float]], fix: int, dilution: float
) -> None:
    found = read_telemetry([payload(gps5(rows, fix, dilution))])
    assert found.gps == []
    assert found.gps_note == "1 of 1 GPS samples without a fix were dropped"


def test_a_position_that_does_not_move_any_more_is_old_whatever_its_fix() -> None:
    moving = [(42.0 + 1e-6 * i, -8.0, 12.0) for i in range(4)]
    stuck = [(42.1, -8.0, 12.0 + i) for i in range(4)]
    tracks = [moving, stuck, stuck, stuck, moving]
    found = read_telemetry(
        [payload(gps5(rows, 3, 1.0), time_s=float(t)) for t, rows in enumerate(tracks)]
    )
    assert [fix.time_s for fix in found.gps] == [0.0, 0.25, 0.5, 0.75, 1.0, 4.0, 4.25, 4.5, 4.75]
    assert found.gps_note == "11 that repeat an old position were dropped"
    # A short while it may.
    short = read_telemetry([payload(gps5(stuck, 3, 1.0)), payload(gps5(moving, 3, 1.0), time_s=1)])
    assert len(short.gps) == 8 and short.gps_note == ""


def test_the_fix_of_newer_cameras_stands_in_each_sample() -> None:
    found = read_telemetry([payload(gps9(47.5, 8.25, 3, 1.5), gps9(47.6, 8.25, 0, 1.5))])
    assert [(g.lat, g.lon, g.alt) for g in found.gps] == [(47.5, 8.25, 12.5)]
    assert "1 of 2" in found.gps_note


def test_gravity_is_unit_length_and_a_zero_reading_is_dropped() -> None:
    found = read_telemetry([payload(gravity((0.0, 0.9, 0.3), (0.0, 0.0, 0.0)), time_s=2.0)])
    (down,) = found.gravity
    assert down.time_s == 2.0
    assert down.x**2 + down.y**2 + down.z**2 == pytest.approx(1.0)
    assert down.y / down.z == pytest.approx(3.0, rel=1e-3)
    assert found.gps_note == "no GPS stream"


def test_exposure_and_motion_are_one_number_a_sample() -> None:
    streams = (
        nest("STRM", klv("SHUT", "f", 4, 2, struct.pack(">2f", 0.004, 0.008))),
        nest("STRM", klv("ISOG", "f", 4, 1, struct.pack(">f", 1.5))),
        nest("STRM", klv("WBAL", "S", 2, 1, struct.pack(">H", 5600))),
        nest(
            "STRM",
            klv("SCAL", "s", 2, 1, struct.pack(">h", 100)),
            klv("GYRO", "s", 6, 1, struct.pack(">3h", 30, 40, 0)),
        ),
    )
    found = read_telemetry([payload(*streams), payload(*streams[:1], time_s=1.0)])
    assert found.readings["shutter_s"] == [
        (time_s, pytest.approx(value))
        for time_s, value in ((0.0, 0.004), (0.5, 0.008), (1.0, 0.004), (1.5, 0.008))
    ]
    assert found.readings["iso"] == [(0.0, 1.5)]
    assert found.readings["white_balance_k"] == [(0.0, 5600.0)]
    assert found.readings["turning_rad_s"] == [(0.0, pytest.approx(0.5))]
    assert "acceleration_m_s2" not in found.readings


def test_a_length_that_runs_past_the_end_is_refused() -> None:
    data = gps5([(1.0, 2.0, 3.0)], 3, 1.0)
    with pytest.raises(GpmfError, match="runs past the end"):
        list(parse(data[:-4]))


@given(st.binary(max_size=400))
def test_noise_is_parsed_or_refused_and_nothing_else(data: bytes) -> None:
    try:
        found = read_telemetry([TimedPayload(0.0, 1.0, data)])
    except GpmfError:
        return
    assert found.gps == []


@given(st.integers(0, 200), st.binary(min_size=1, max_size=3))
def test_a_damaged_payload_never_raises_anything_else(offset: int, junk: bytes) -> None:
    whole = payload(gps5([(1.0, 2.0, 3.0)], 3, 1.0), gravity((0.0, 1.0, 0.0))).data
    data = whole[:offset] + junk + whole[offset + len(junk) :]
    try:
        found = read_telemetry([TimedPayload(0.0, 1.0, data)])
    except GpmfError:
        return
    assert all(abs(g.lat) <= 90 and abs(g.lon) <= 180 for g in found.gps)


def test_a_track_is_cut_into_its_packets_or_refused() -> None:
    packets = [
        {"time_s": 0.0, "duration_s": 1.0, "bytes": 3},
        {"time_s": 1.0, "duration_s": 1.0, "bytes": 2},
    ]
    assert [p.data for p in split_payloads(b"abcde", packets)] == [b"abc", b"de"]
    with pytest.raises(GpmfError, match="do not add up"):
        split_payloads(b"abcdef", packets)


def quaternions(key: str, *rows: tuple[float, float, float, float]) -> bytes:
    data = b"".join(struct.pack(">4h", *(round(32767 * v) for v in row)) for row in rows)
    return nest(
        "STRM",
        klv("SCAL", "s", 2, 1, struct.pack(">h", 32767)),
        klv(key, "s", 8, len(rows), data),
    )


def test_orientation_is_from_the_camera_to_where_it_began() -> None:
    half = 0.5**0.5
    told = quaternions("CORI", (1, 0, 0, 0), (half, 0, half, 0), (0.2, 0, 0, 0))
    still = quaternions("IORI", (1, 0, 0, 0), (0.9999, 0.001, 0, 0))
    payload = TimedPayload(2.0, 0.9, nest("DEVC", name("Hero10 Black"), told, still))
    first, second = read_telemetry([payload]).orientation  # the third is no rotation
    assert (first.time_s, first.w) == (2.0, 1.0)
    assert (second.time_s, second.y) == (pytest.approx(2.3), pytest.approx(-half, abs=1e-4))
    stabilised = quaternions("IORI", (1, 0, 0, 0), (0.99, 0.14, 0, 0))
    payload = TimedPayload(2.0, 0.9, nest("DEVC", told, stabilised))
    assert read_telemetry([payload]).orientation == []


def test_the_receivers_clock_says_when_the_clip_began() -> None:
    utc = klv("GPSU", "U", 16, 1, b"260504103002.500")
    for fix, expected in ((3, 1_777_890_600.5), (0, None)):
        stream = gps5([(45.0, 9.0, 1.0)], fix, 1.0)
        body = utc + stream[8:]
        payload = TimedPayload(2.0, 1.0, nest("DEVC", klv("STRM", "\0", 1, len(body), body)))
        assert read_telemetry([payload]).started_at == expected
    payload = TimedPayload(4.0, 1.0, nest("DEVC", gps9(45.0, 9.0, 3, 1.0)))
    assert read_telemetry([payload]).started_at == 946_684_800 + 9000 * 86_400 + 45_000 - 4.0


def test_the_cameras_settings_are_read_at_any_depth() -> None:
    model, fov = klv("MINF", "c", 1, 12, b"HERO10 Black"), klv("VFOV", "c", 1, 1, b"L")
    size = klv("VRES", "L", 4, 2, struct.pack(">2I", 3840, 2160))
    curve = klv("MAPX", "d", 8, 40, bytes(320))
    expected = {"MINF": "HERO10 Black", "VFOV": "L", "VRES": "3840 2160"}
    for box in (
        nest("DEVC", nest("STRM", model, fov, size)),
        nest("DEVC", model, size, curve) + nest("DEVC", fov),
    ):
        assert read_settings(box) == expected
    with pytest.raises(GpmfError):
        read_settings(b"MINFc\x01\x00\xffHERO")
