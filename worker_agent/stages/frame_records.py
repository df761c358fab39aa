"""The manifest's frame records: what was measured around each frame, at the frame's own time. Pure.

A record is what later stages know of a frame:

name, clip, time_s
gravity      [x, y, z] unit vector down, in camera axes (x right, y down, z forward); null
orientation  [w, x, y, z] unit quaternion from camera axes to those the camera had as the recording
             began, by its gyroscopes (CORI): it drifts, so only short spans count; null
gps          [latitude, longitude, metres up]: where the camera was on the earth; null
position     {"at": [3], "frame": "wgs84" | "enu", "sigma_m": number | null, "source":
             "navigation" | "gps"}: where it was, in the one frame that all records of a segment
             share. wgs84 is what `gps` says, enu is metres east, north, up from the log's own
             origin. null where it is not known.
depth_m, altitude_m   below the surface and above the ground, by the vehicle; null
readings     {name: number}

Positions of the vehicle's log go before the camera's GPS: the log is what was corrected afterwards.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["interpolate", "join"]

MAX_GPS_GAP_S = 3.0  # a vehicle that was longer without a fix may be anywhere
MAX_GRAVITY_GAP_S = 1.0

Track = Sequence[tuple[float, ...]]  # (time, values...), in time order


@dataclass(frozen=True, slots=True)
class _Tracks:
    """What was measured over one clip."""

    gps: Track
    gravity: Track
    orientation: Track
    readings: Mapping[str, Track]
    position: Track
    sigma: Track
    depth: Track
    altitude: Track
    frame: str | None  # of `position`

    @classmethod
    def of(cls, clip: Mapping[str, Any]) -> _Tracks:
        """`clip`: one of `output/metadata.json`."""
        log = clip.get("navigation") or {"frame": None, "samples": []}
        samples = log["samples"]
        return cls(
            gps=[(p["time_s"], p["lat"], p["lon"], p["alt"]) for p in clip["gps"]],
            gravity=[(g["time_s"], g["x"], g["y"], g["z"]) for g in clip["gravity"]],
            orientation=[
                (q["time_s"], q["w"], q["x"], q["y"], q["z"]) for q in clip.get("orientation", ())
            ],
            readings={key: [tuple(s) for s in track] for key, track in clip["readings"].items()},
            position=[(s["time_s"], *s["position"]) for s in samples if s["position"] is not None],
            sigma=_track(samples, "sigma_m"),
            depth=_track(samples, "depth_m"),
            altitude=_track(samples, "altitude_m"),
            frame=log["frame"],
        )


def _track(samples: Sequence[Mapping[str, Any]], key: str) -> Track:
    return [(s["time_s"], s[key]) for s in samples if s[key] is not None]


_NOTHING = _Tracks((), (), (), {}, (), (), (), (), None)


def join(
    frames: Sequence[Mapping[str, Any]],
    clips: Sequence[Mapping[str, Any]],
    *,
    max_gap_s: float,
) -> list[dict[str, Any]]:
    """One record a frame. `max_gap_s`: between two samples of the vehicle's log."""
    tracks = {clip["name"]: _Tracks.of(clip) for clip in clips}
    logged = next((track.frame for track in tracks.values() if track.position), None)
    rows: list[dict[str, Any]] = []
    for frame in frames:
        track = tracks.get(frame["clip"], _NOTHING)
        time_s = float(frame["time_s"])

        def told(of: Track, time_s: float = time_s, gap_s: float = max_gap_s) -> list[float] | None:
            return interpolate(of, time_s, gap_s, beyond_s=0.0)

        position = told(track.position)
        gps = position if logged == "wgs84" else None
        if logged is None:
            gps = interpolate(track.gps, time_s, MAX_GPS_GAP_S)
        sigma, depth, altitude = (
            value[0] if (value := told(of)) else None
            for of in (track.sigma, track.depth, track.altitude)
        )
        at = gps if logged is None else position
        rows.append(
            {
                "name": frame["name"],
                "clip": frame["clip"],
                "time_s": time_s,
                "gps": gps,
                "position": None
                if at is None
                else {
                    "at": at,
                    "frame": logged or "wgs84",
                    "sigma_m": sigma if logged else None,
                    "source": "navigation" if logged else "gps",
                },
                "depth_m": depth,
                "altitude_m": altitude,
                "gravity": _unit(interpolate(track.gravity, time_s, MAX_GRAVITY_GAP_S)),
                "orientation": _unit(_nearer(track.orientation, time_s)),
                "readings": {
                    key: value[0]
                    for key, one in track.readings.items()
                    if (value := interpolate(one, time_s, MAX_GRAVITY_GAP_S)) is not None
                },
            }
        )
    return rows


def interpolate(
    track: Track, time_s: float, max_gap_s: float, *, beyond_s: float | None = None
) -> list[float] | None:
    """Linear between the two samples (time, values...) around `time_s`, in time order.

    None when they lie further apart than `max_gap_s`; beyond either end the last sample holds for
    `beyond_s` (by default as long). Longitudes are not unwrapped at 180 degrees.
    """
    after = bisect.bisect_left(track, time_s, key=lambda sample: sample[0])
    if after == 0 or after == len(track):
        if not track:
            return None
        nearest = track[0] if after == 0 else track[-1]
        reach = max_gap_s if beyond_s is None else beyond_s
        return list(nearest[1:]) if abs(nearest[0] - time_s) <= reach else None
    left, right = track[after - 1], track[after]
    gap = right[0] - left[0]
    if right[0] == time_s:
        return list(right[1:])
    if gap > max_gap_s:
        return None
    weight = (time_s - left[0]) / gap
    return [a + weight * (b - a) for a, b in zip(left[1:], right[1:], strict=True)]


def _nearer(track: Track, time_s: float) -> list[float] | None:
    """Quaternions: between two samples of one frame each, the blend of the two, of one sign."""
    after = bisect.bisect_left(track, time_s, key=lambda sample: sample[0])
    around = [sample for sample in track[max(0, after - 1) : after + 1]]
    if len(around) == 2 and sum(a * b for a, b in zip(*(s[1:] for s in around), strict=True)) < 0:
        around[1] = (around[1][0], *(-v for v in around[1][1:]))
    return interpolate(around, time_s, MAX_GRAVITY_GAP_S)


def _unit(vector: list[float] | None) -> list[float] | None:
    length = math.hypot(*vector) if vector else 0.0
    return [v / length for v in vector] if vector and length > 1e-6 else None
