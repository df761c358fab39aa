"""GoPro telemetry (GPMF): GPS fixes, gravity, orientation and exposure.

A payload of the track (`klv`) is a DEVC container with one STRM a sensor. It covers about one
second, and a sensor's samples are spread evenly over it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from worker_agent.stages.klv import GpmfError, Klv, find, samples, scaled, streams
from worker_agent.stages.navigation import FROZEN_POSITION_S, first_of_frozen

__all__ = [
    "GpsFix",
    "GravitySample",
    "OrientationSample",
    "Telemetry",
    "TimedPayload",
    "read_telemetry",
]

MIN_FIX = 2  # GPSF: 0 no lock, 2 2D, 3 3D
MAX_DILUTION = 10.0  # of precision; a receiver without lock says 99.99
# Streams whose samples are kept as one number each: name -> (its keys on different models, how the
# number comes of a row).
READINGS: dict[str, tuple[tuple[str, ...], Callable[[tuple[float, ...]], float]]] = {
    "shutter_s": (("SHUT",), lambda row: row[0]),
    "iso": (("ISOE", "ISOG"), lambda row: row[0]),
    "white_balance_k": (("WBAL",), lambda row: row[0]),
    "turning_rad_s": (("GYRO",), lambda row: math.hypot(*row)),
    "acceleration_m_s2": (("ACCL",), lambda row: math.hypot(*row)),
}
MAX_STABILISED_DEG = 1.0  # of IORI; without stabilisation it stays below 0.3
GPS9_EPOCH = datetime(2000, 1, 1, tzinfo=UTC).timestamp()


@dataclass(frozen=True, slots=True)
class TimedPayload:
    """One packet of the track: seconds on the clip's timeline."""

    time_s: float
    duration_s: float
    data: bytes


@dataclass(frozen=True, slots=True)
class GpsFix:
    """A position the receiver vouches for: degrees WGS84, metres, GPSF fix (2 or 3)."""

    time_s: float
    lat: float
    lon: float
    alt: float
    fix: int


@dataclass(frozen=True, slots=True)
class GravitySample:
    """Unit vector in camera axes (x right, y down, z forward)."""

    time_s: float
    x: float
    y: float
    z: float


@dataclass(frozen=True, slots=True)
class OrientationSample:
    """Unit quaternion from camera axes (x right, y down, z forward) to those that the camera had
    as the recording began.

    That is the conjugate of CORI as it is written: of the 48 ways to read its axes the one that
    agrees with camera poses (HERO10) and with GRAV (HERO9, HERO10).
    """

    time_s: float
    w: float
    x: float
    y: float
    z: float


@dataclass(frozen=True, slots=True)
class Telemetry:
    device: str | None
    gps: list[GpsFix]
    gps_note: str  # why there are no, or fewer, fixes; empty when all is well
    gravity: list[GravitySample]
    readings: dict[str, list[tuple[float, float]]]  # name of READINGS -> (time_s, value)
    orientation: list[OrientationSample] = field(default_factory=list)
    started_at: float | None = None  # Unix time at 0 s, by the receiver's clock while it had a fix


def read_telemetry(payloads: Sequence[TimedPayload]) -> Telemetry:
    """GPS fixes, gravity, orientation and readings of one clip, in time order.

    A position counts only when GPSF says 2D or 3D and GPSP (dilution x 100) is small: receivers
    under water write 0,0 or repeat a stale position. Raises GpmfError for bytes that are not GPMF.
    """
    device: str | None = None
    gps: list[GpsFix] = []
    gravity: list[GravitySample] = []
    orientation: list[OrientationSample] = []
    stabilised: list[bool] = []
    readings: dict[str, list[tuple[float, float]]] = {}
    starts: list[float] = []
    seen = 0
    for payload in payloads:
        for name, entries in streams(payload.data):
            rows5, rows9 = scaled(entries, "GPS5"), scaled(entries, "GPS9")
            downs = scaled(entries, "GRAV")
            device = device or name or None
            seen += len(rows5) + len(rows9)
            fixes5 = _gps5(payload, entries, rows5)
            gps += fixes5 + _gps9(payload, rows9)
            starts += (_utc5(payload, entries) if fixes5 else []) + _utc9(payload, rows9)
            for time_s, row in _spread(payload, downs):
                length = math.sqrt(sum(v * v for v in row))
                if len(row) == 3 and 0.5 < length < 2.0:
                    x, y, z = (v / length for v in row)
                    gravity.append(GravitySample(time_s, x, y, z))
            orientation += _orientation(payload, scaled(entries, "CORI"))
            stabilised += [_turn_deg(row) > MAX_STABILISED_DEG for row in scaled(entries, "IORI")]
            for key, value in _readings(payload, entries):
                readings.setdefault(key, []).append(value)
    note = ""
    if seen == 0:
        note = "no GPS stream"
    elif len(gps) < seen:
        note = f"{seen - len(gps)} of {seen} GPS samples without a fix were dropped"
    live = _live(gps)
    if len(live) < len(gps):
        old = f"{len(gps) - len(live)} that repeat an old position were dropped"
        note, gps = "; ".join(filter(None, (note, old))), live
    started_at = statistics.median(starts) if starts else None
    if any(stabilised):  # the pictures are turned against the camera
        orientation = []
    return Telemetry(device, gps, note, gravity, readings, orientation, started_at)


def _live(fixes: Sequence[GpsFix]) -> list[GpsFix]:
    """Without those that do not move to the last digit, though the receiver claims a fix: it shows
    where it lost its satellites. One that stands still on land trembles."""
    places = first_of_frozen(
        [fix.time_s for fix in fixes], [(fix.lat, fix.lon) for fix in fixes], FROZEN_POSITION_S
    )
    return [fix for fix, place in zip(fixes, places, strict=True) if place is not None]


def _readings(
    payload: TimedPayload, entries: Sequence[Klv]
) -> Iterator[tuple[str, tuple[float, float]]]:
    for key, (keys, number) in READINGS.items():
        for one in keys:
            try:
                rows = scaled(entries, one)
            except GpmfError:  # of a form that is not known: worth no position
                continue
            for time_s, row in _spread(payload, rows):
                yield key, (time_s, number(row))


def _gps5(
    payload: TimedPayload, entries: Sequence[Klv], rows: list[tuple[float, ...]]
) -> list[GpsFix]:
    """GPS5 rows are lat, lon, alt, 2D and 3D speed; fix and dilution hold for the payload."""
    fix_entry, dilution_entry = find(entries, "GPSF"), find(entries, "GPSP")
    fix = int(samples(fix_entry)[0][0]) if fix_entry is not None and fix_entry.data else 0
    dilution = math.inf
    if dilution_entry is not None and dilution_entry.data:
        dilution = samples(dilution_entry)[0][0] / 100
    if fix < MIN_FIX or dilution > MAX_DILUTION:
        return []
    return [
        GpsFix(time_s, row[0], row[1], row[2], fix)
        for time_s, row in _spread(payload, rows)
        if len(row) == 5 and _on_earth(row)
    ]


def _gps9(payload: TimedPayload, rows: list[tuple[float, ...]]) -> list[GpsFix]:
    """GPS9 rows: lat, lon, alt, 2D, 3D speed, days since 2000, seconds, dilution, fix."""
    return [
        GpsFix(time_s, row[0], row[1], row[2], int(row[8]))
        for time_s, row in _spread(payload, rows)
        if len(row) == 9 and row[8] >= MIN_FIX and row[7] <= MAX_DILUTION and _on_earth(row)
    ]


def _orientation(
    payload: TimedPayload, rows: list[tuple[float, ...]]
) -> Iterator[OrientationSample]:
    for time_s, row in _spread(payload, rows):
        length = math.hypot(*row)
        if len(row) == 4 and 0.9 < length < 1.1:
            w, x, y, z = (v / length for v in row)
            yield OrientationSample(time_s, w, -x, -y, -z)


def _turn_deg(row: tuple[float, ...]) -> float:
    """Of a quaternion (w, x, y, z)."""
    return 2 * math.degrees(math.acos(min(1.0, abs(row[0]) / (math.hypot(*row) or 1.0))))


def _utc5(payload: TimedPayload, entries: Sequence[Klv]) -> list[float]:
    """Unix time at the clip's 0 s by GPSU: yymmddhhmmss.sss, of the payload's first sample."""
    entry = find(entries, "GPSU")
    if entry is None:
        return []
    said = entry.data.split(b"\0", 1)[0].decode("latin-1").strip()
    try:
        when = datetime.strptime(said, "%y%m%d%H%M%S.%f").replace(tzinfo=UTC)
    except ValueError:
        return []
    return [when.timestamp() - payload.time_s]


def _utc9(payload: TimedPayload, rows: list[tuple[float, ...]]) -> list[float]:
    return [
        GPS9_EPOCH + 86_400 * row[5] + row[6] - time_s
        for time_s, row in _spread(payload, rows)
        if len(row) == 9 and row[8] >= MIN_FIX and row[5] > 0
    ]


def _spread(
    payload: TimedPayload, rows: list[tuple[float, ...]]
) -> Iterator[tuple[float, tuple[float, ...]]]:
    for index, row in enumerate(rows):
        yield payload.time_s + payload.duration_s * index / len(rows), row


def _on_earth(row: tuple[float, ...]) -> bool:
    lat, lon = row[0], row[1]
    return abs(lat) <= 90 and abs(lon) <= 180 and (lat != 0 or lon != 0)
