"""A vehicle's navigation log: CSV into samples, and samples onto a clip's timeline. Pure.

The header names the columns, with their units: `depth_m`, `depth [m]` and `Depth (m)` are the same.
Columns of other names are left alone. docs/navigation.md is the operator's description.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal, TypeVar

__all__ = [
    "FROZEN_POSITION_S",
    "NavError",
    "NavLog",
    "NavSample",
    "clip_starts",
    "first_of_frozen",
    "on_timeline",
    "parse_log",
]

Clock = Literal["utc", "clip"]
Geodesy = Literal["wgs84", "enu"]
Position = tuple[float, float, float]
T = TypeVar("T")

# A value that stays the same to the last digit for longer is old, not measured anew.
FROZEN_POSITION_S = 2.0
FROZEN_SCALAR_S = 20.0  # depth and altitude are rounded, and a vehicle keeps them

_LENGTHS = {"m": 1.0, "cm": 0.01, "mm": 0.001, "km": 1000.0, "ft": 0.3048, "fm": 1.8288}
_ANGLES = {"deg": 1.0, "rad": math.degrees(1.0)}
_DURATIONS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}

# Quantity -> names that mean it. Metres but for lat and lon (degrees) and times (seconds).
_NAMES = {
    "utc": ("utc", "time_utc", "timestamp_utc", "datetime_utc"),
    "unix": ("unix", "unix_time", "time_unix", "epoch", "timestamp_unix"),
    "clip": ("t", "video_t", "video_time"),
    "lat": ("lat", "latitude"),
    "lon": ("lon", "lng", "longitude"),
    "up": ("alt", "up", "height", "elevation", "z_enu"),
    "down": ("down", "z_ned"),
    "east": ("east", "easting", "x_enu", "y_ned"),
    "north": ("north", "northing", "y_enu", "x_ned"),
    "depth": ("depth",),
    "altitude": ("altitude", "altimeter", "dvl_altitude"),
    "sigma": ("sigma", "position_sigma"),
}
_QUANTITY = {name: quantity for quantity, names in _NAMES.items() for name in names}
_UNLESS_SAID = {"lat": "deg", "lon": "deg"}
_HEADER = re.compile(r"^(?P<name>.*?)[\s_]*(?:[\[(](?P<unit>[a-z]+)[\])])?$")

_AXIS = re.compile(r"[xyz]\b|[xyz]_m$", re.IGNORECASE)


class NavError(ValueError):
    """The log cannot be read: "file:line: what"."""


@dataclass(frozen=True, slots=True)
class NavSample:
    """Metres; what the log does not say at that time is None."""

    time_s: float  # Unix time, or since the clip's start
    position: Position | None = None  # lat, lon (degrees), up; or east, north, up
    sigma_m: float | None = None
    depth_m: float | None = None
    altitude_m: float | None = None  # above the ground


@dataclass(frozen=True, slots=True)
class NavLog:
    clock: Clock
    frame: Geodesy | None  # of the positions; None: the log has none
    samples: tuple[NavSample, ...]  # in order of time


def parse_log(text: str, name: str) -> NavLog:
    """Samples with a value that does not move on taken out. Raises NavError; `name` is the file's.

    Comma, semicolon or tab; lines that begin with # are left out.
    """
    rows = _rows(text)
    try:
        line, header = next(rows)
    except StopIteration:
        raise NavError(f"{name}:1: the file is empty") from None
    columns = _columns(header, f"{name}:{line}")
    clock, frame = _kind(columns, header, f"{name}:{line}")
    samples: list[NavSample] = []
    for line, cells in rows:
        where = f"{name}:{line}"
        values = _values(cells, columns, where)
        time_s = values.get("utc", values.get("unix", values.get("clip")))
        if time_s is None:
            raise NavError(f"{where}: no time")
        if samples and time_s < samples[-1].time_s:
            raise NavError(f"{where}: time goes back by {samples[-1].time_s - time_s:g} s")
        if samples and time_s == samples[-1].time_s:
            continue
        samples.append(_sample(time_s, values, frame, where))
    if not samples:
        raise NavError(f"{name}:{line}: there is no row below the header")
    return NavLog(clock, frame, _alive(samples))


def clip_starts(
    clips: Sequence[tuple[str, float, float | None]],
) -> list[float | None]:
    """Unix time at the start of each clip of a segment, in order; None where nothing tells it.

    `clips`: (name, seconds, its own start or None). Chapters of one GoPro recording follow each
    other without a gap, so only the first one's own time counts.
    """
    starts: list[float | None] = []
    for index, (name, _, own) in enumerate(clips):
        before = clips[index - 1] if index else None
        if before is not None and _recording(name) and _recording(name) == _recording(before[0]):
            last = starts[-1]
            starts.append(own if last is None else last + before[1])
        else:
            starts.append(own)
    return starts


def on_timeline(
    log: NavLog,
    *,
    start_s: float | None,
    duration_s: float,
    offset_s: float,
    margin_s: float,
    lift_m: float = 0.0,
) -> list[NavSample]:
    """The samples of one clip, in seconds on its timeline; `offset_s` is added to the log's times,
    `lift_m` to its altitudes.

    `start_s` is the clip's start (Unix time) for a log in UTC. Samples further than `margin_s`
    beyond the clip's ends are left out. Empty when the clip's start is not known.
    """
    if log.clock == "utc":
        if start_s is None:
            return []
        offset_s -= start_s
    return [
        replace(
            sample,
            time_s=sample.time_s + offset_s,
            altitude_m=None if sample.altitude_m is None else sample.altitude_m + lift_m,
        )
        for sample in log.samples
        if -margin_s <= sample.time_s + offset_s <= duration_s + margin_s
    ]


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of all lines that say something."""
    lines = text.removeprefix("\ufeff").splitlines()
    first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
    delimiter = max(",;\t", key=first.count)
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            yield number, [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))]


def _columns(header: Sequence[str], where: str) -> dict[int, tuple[str, float]]:
    """Column -> (quantity, factor to its unit)."""
    found: dict[int, tuple[str, float]] = {}
    for index, title in enumerate(header):
        quantity, unit = _read_title(title)
        if quantity is None:
            continue
        if any(quantity == other for other, _ in found.values()):
            raise NavError(f"{where}: two columns say {quantity} ({title!r} is the second)")
        found[index] = (quantity, _factor(quantity, unit, title, where))
    return found


def _read_title(title: str) -> tuple[str | None, str]:
    """(quantity, unit or ""); no quantity for a column that is not ours."""
    match = _HEADER.match(title.strip().lower())
    name, unit = (match["name"], match["unit"] or "") if match else (title, "")
    name = re.sub(r"[\s\-]+", "_", name.strip())
    if not unit and name not in _QUANTITY:
        name, _, unit = name.rpartition("_")
    return _QUANTITY.get(name), unit


def _factor(quantity: str, unit: str, title: str, where: str) -> float:
    if quantity == "utc":
        return 1.0
    units = {"lat": _ANGLES, "lon": _ANGLES, "unix": _DURATIONS, "clip": _DURATIONS}
    known = units.get(quantity, _LENGTHS)
    unit = unit or _UNLESS_SAID.get(quantity, "")
    if unit not in known:
        said = f"the unit {unit!r} of {title!r} is not known" if unit else f"{title!r} has no unit"
        raise NavError(
            f"{where}: {said}; known: {', '.join(known)} (as in {title}_{next(iter(known))})"
        )
    return known[unit]


def _kind(
    columns: dict[int, tuple[str, float]], header: Sequence[str], where: str
) -> tuple[Clock, Geodesy | None]:
    there = {quantity for quantity, _ in columns.values()}
    times = there & {"utc", "unix", "clip"}
    if len(times) != 1:
        what = "two columns of time" if times else "no column of time"
        raise NavError(f"{where}: {what}: give one of utc, unix_s and t_s")
    clock: Clock = "clip" if "clip" in times else "utc"
    height = there & {"up", "down", "depth"}
    for pair, frame in ((("lat", "lon"), "wgs84"), (("north", "east"), "enu")):
        if not there & set(pair):
            continue
        missing = set(pair) - there
        if missing:
            raise NavError(
                f"{where}: {pair[0]} and {pair[1]} go together; {missing.pop()} is missing"
            )
        if not height:
            raise NavError(f"{where}: {pair[0]} and {pair[1]} need a height: alt_m or depth_m")
        return clock, "wgs84" if frame == "wgs84" else "enu"
    axis = next((title for title in header if _AXIS.match(title.strip())), None)
    if axis is not None:
        raise NavError(
            f"{where}: {axis!r} does not say which way it points: name it {axis[0]}_enu_m (x east, "
            f"y north, z up) or {axis[0]}_ned_m (x north, y east, z down)"
        )
    if not there & {"depth", "altitude"}:
        raise NavError(
            f"{where}: no column of use: lat and lon, north_m and east_m, depth_m, altitude_m"
        )
    return clock, None


def _values(
    cells: Sequence[str], columns: dict[int, tuple[str, float]], where: str
) -> dict[str, float]:
    values: dict[str, float] = {}
    for index, (quantity, factor) in columns.items():
        cell = cells[index] if index < len(cells) else ""
        if quantity == "utc" and cell:
            values[quantity] = _utc(cell, where)
            continue
        if not cell or cell.lower() in ("nan", "null", "none", "na", "n/a"):
            continue
        try:
            value = float(cell) * factor
        except ValueError:
            raise NavError(f"{where}: {quantity} is {cell!r}, not a number") from None
        if not math.isfinite(value):
            raise NavError(f"{where}: {quantity} is {cell!r}, not a finite number")
        values[quantity] = value
    return values


def _utc(cell: str, where: str) -> float:
    try:
        when = datetime.fromisoformat(cell)
    except ValueError:
        raise NavError(
            f"{where}: utc is {cell!r}, not a time such as 2026-05-04T10:30:00.5Z"
        ) from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _sample(
    time_s: float, values: dict[str, float], frame: Geodesy | None, where: str
) -> NavSample:
    depth, altitude, sigma = (values.get(key) for key in ("depth", "altitude", "sigma"))
    return NavSample(
        time_s=time_s,
        position=_position(values, frame, where),
        sigma_m=sigma if sigma is not None and sigma > 0 else None,
        depth_m=depth,
        # An altimeter that sees no ground says 0 or less.
        altitude_m=altitude if altitude is not None and altitude > 0 else None,
    )


def _position(values: dict[str, float], frame: Geodesy | None, where: str) -> Position | None:
    flat = ("lat", "lon") if frame == "wgs84" else ("east", "north")
    if frame is None or any(key not in values for key in flat):
        return None
    up = values.get("up")
    for key in ("down", "depth"):
        if up is None and key in values:
            up = -values[key]
    if up is None:
        return None
    one, two = (values[key] for key in flat)
    if frame == "wgs84":
        if abs(one) > 90 or abs(two) > 180:
            raise NavError(f"{where}: lat {one:g}, lon {two:g} is not on the earth")
        if one == 0 and two == 0:  # written where there is no fix
            return None
    return one, two, up


def _alive(samples: Sequence[NavSample]) -> tuple[NavSample, ...]:
    """With what stays the same for too long taken out but for its first sample: that one was
    measured, the others repeat it."""
    times = [sample.time_s for sample in samples]
    positions = first_of_frozen(times, [sample.position for sample in samples], FROZEN_POSITION_S)
    depths = first_of_frozen(times, [sample.depth_m for sample in samples], FROZEN_SCALAR_S)
    heights = first_of_frozen(times, [sample.altitude_m for sample in samples], FROZEN_SCALAR_S)
    return tuple(
        replace(sample, position=position, depth_m=depth, altitude_m=height)
        for sample, position, depth, height in zip(samples, positions, depths, heights, strict=True)
    )


def first_of_frozen(
    times: Sequence[float], values: Sequence[T | None], longest_s: float
) -> list[T | None]:
    """`values` with None for those that repeat the one before them for longer than that; the first
    of them was measured."""
    kept = list(values)
    for start, end in _runs(values, lambda one, two: one is not None and one == two):
        if times[end] - times[start] > longest_s:
            kept[start + 1 : end + 1] = [None] * (end - start)
    return kept


def _runs(values: Sequence[T], same: Callable[[T, T], bool]) -> Iterable[tuple[int, int]]:
    """(first, last) of every stretch of equal neighbours."""
    start = 0
    for index in range(1, len(values) + 1):
        if index == len(values) or not same(values[start], values[index]):
            yield start, index - 1
            start = index


def _recording(name: str) -> str:
    """GoPro's number of the recording in a clip's name on the host: 0042 of 000-GX010042.MP4."""
    match = re.match(r"^(?:\d+-)?G[A-Z]\d\d(\d{4})\.", name, re.IGNORECASE)
    return match[1] if match else ""
