"""Where the demo's two AUVs go: who films what, with which camera, through which water.

AUV a runs two parallel lines that share about half of their swath, AUV b two lines across them,
higher, with another lens and another colour of water. Every segment is reconstructed on its own, so
each must see enough ground again and again; the pairs must share enough for a stitch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker_agent.demo.render import Camera, Water

_CLEAR = Water((0.42, 0.12, 0.09), (0.03, 0.16, 0.22), (1.25, 1.15, 1.15))
_BLUE = Water((0.55, 0.16, 0.10), (0.02, 0.13, 0.22), (1.50, 1.10, 1.00))


@dataclass(frozen=True, slots=True)
class Segment:
    """One straight line at constant speed, filmed by one camera."""

    name: str
    auv: str
    serial: str
    clip: str
    start_m: tuple[float, float]
    end_m: tuple[float, float]
    altitude_m: float
    camera: Camera
    water: Water


@dataclass(frozen=True, slots=True)
class Survey:
    size_m: tuple[float, float]
    texel_m: float
    fps: int
    seconds: float
    segments: tuple[Segment, ...]

    @property
    def frames(self) -> int:
        """Of each segment."""
        return round(self.seconds * self.fps)


@dataclass(frozen=True, slots=True)
class Track:
    """Poses of N frames: centres (N, 3) in metres, rotations (N, 3, 3) world_from_camera."""

    times_s: NDArray[np.float64]
    centres: NDArray[np.float64]
    rotations: NDArray[np.float64]


def _survey(
    width: int, length_m: float, speed_m_s: float, fps: int, altitude_m: float, texel_m: float
) -> Survey:
    """A cross of 2 x 2 lines of `length_m`, centred on just the ground that the cameras can see."""
    wide = Camera(width, width * 9 // 16, 80.0)
    narrow = Camera(width, width * 9 // 16, 70.0)
    high = altitude_m * 1.2
    # The farthest a camera looks, at 12 degrees of pitch and the largest sway: 1.25 altitudes.
    reach = 1.25 * high + 0.1
    side = length_m + 2 * reach
    middle = side / 2
    first, last = reach, side - reach
    # 57 % and 54 % sidelap: swath widths are 1.68 and 1.40 times the altitude.
    a = 0.72 * altitude_m / 2
    b = 0.64 * high / 2
    segments = (
        Segment(
            "a1", "auv-a", "C3441325000001", "GX010101.MP4",
            (first, middle - a), (last, middle - a), altitude_m, wide, _CLEAR,
        ),
        Segment(
            "a2", "auv-a", "C3441325000001", "GX010102.MP4",
            (last, middle + a), (first, middle + a), altitude_m, wide, _CLEAR,
        ),
        Segment(
            "b1", "auv-b", "C3441325000002", "GX010201.MP4",
            (middle - b, first), (middle - b, last), high, narrow, _BLUE,
        ),
        Segment(
            "b2", "auv-b", "C3441325000002", "GX010202.MP4",
            (middle + b, last), (middle + b, first), high, narrow, _BLUE,
        ),
    )  # fmt: skip
    return Survey((side, side), texel_m, fps, length_m / speed_m_s, segments)


PRESETS: dict[str, Survey] = {
    "demo": _survey(480, 4.05, 0.45, 10, 1.8, 0.005),
    "small": _survey(320, 2.0, 0.40, 10, 1.2, 0.005),
}


def track_of(survey: Survey, segment: Segment, seed: int) -> Track:
    """The segment's poses, swaying slowly about the line: a vehicle in a light swell."""
    rng = np.random.default_rng([seed, *segment.name.encode()])
    phase = rng.uniform(0, 2 * np.pi, 7)
    times = np.arange(survey.frames) / survey.fps
    start, end = np.array(segment.start_m), np.array(segment.end_m)
    along = (times / survey.seconds)[:, None]
    line = start + along * (end - start)
    scale = segment.altitude_m / 2.0
    sway = np.stack(
        [
            0.05 * np.sin(0.9 * times + phase[0]),
            0.06 * np.sin(0.7 * times + phase[1]),
            0.15 * np.sin(0.8 * times + phase[2]) + 0.03 * np.sin(2.1 * times + phase[3]),
        ],
        axis=1,
    )
    centres = np.column_stack([line, np.full(len(times), segment.altitude_m)]) + scale * sway
    heading = np.arctan2(*(end - start)[::-1]) + np.deg2rad(3) * np.sin(0.6 * times + phase[4])
    pitch = np.deg2rad(12) + np.deg2rad(4) * np.sin(1.1 * times + phase[5])
    roll = np.deg2rad(4) * np.sin(1.3 * times + phase[6])
    rotations = np.stack(
        [_looking_down(*angles) for angles in zip(heading, pitch, roll, strict=True)]
    )
    return Track(times, centres, rotations)


def _looking_down(heading: float, pitch: float, roll: float) -> NDArray[np.float64]:
    """world_from_camera of a camera that looks down, tilted forward by `pitch` (radians)."""
    c, s = np.cos(heading), np.sin(heading)
    nadir = np.array([[s, -c, 0.0], [-c, -s, 0.0], [0.0, 0.0, -1.0]]).T
    c, s = np.cos(pitch), np.sin(pitch)
    tilt = np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])
    c, s = np.cos(roll), np.sin(roll)
    lean = np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])
    return np.asarray(nadir @ tilt @ lean)
