"""Makes an accepted model upright and metric, from the gravity and the positions of its cameras.

SfM leaves a model in a frame of its own. Gravity readings say which way is down, positions (GPS on
the surface, a vehicle's navigation below it) what a metre is and where north lies. The result has
x east, y north, z up; without positions, only z up, and a scale of SfM's own unless the vehicle's
altimeter or depth tell it (`sfm_scale`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from worker_agent.stages.sfm_scale import by_altitude, by_depth, heights
from worker_agent.stages.sfm_turning import turning_error_deg

__all__ = [
    "MAX_RESIDUALS",
    "MIN_SIDE",
    "Frame",
    "WorldFrame",
    "frames_of",
    "georeference",
    "place",
    "side",
    "to_enu",
]

F64 = npt.NDArray[np.float64]

MIN_READINGS = 3
MIN_POSITIONS = 5
MIN_SPREAD = 3.0  # largest distance of positions from their mean, over the median residual
MAX_RESIDUALS = 3.0  # robust deviations beyond which a position does not count
MIN_SIDE = 0.15  # second over first extent of a track that alone fixes all of its rotation
ROUNDS = 4

# WGS84 (NIMA TR8350.2).
_MAJOR = 6378137.0
_ECCENTRICITY2 = 6.69437999014e-3


@dataclass(frozen=True, slots=True)
class Frame:
    """One registered camera in the model's frame; what was not measured is None."""

    centre: F64  # (3,)
    down: F64 | None  # (3,) unit
    position: F64 | None  # (3,) metres east, north, up


@dataclass(frozen=True, slots=True)
class WorldFrame:
    """new = scale * rotation @ old + translation."""

    scale: float
    rotation: F64  # (3, 3)
    translation: F64  # (3,)
    upright: bool
    metric: bool
    drift_m: float | None  # median distance of the cameras from their positions; None: no metre
    positions: int  # that counted
    uncertainty: float | None = (
        None  # of the scale: one standard deviation, over it; None: no metre
    )

    def apply(self, points: F64) -> F64:
        """(N, 3) -> (N, 3)"""
        moved: F64 = self.scale * points @ self.rotation.T + self.translation
        return moved


def to_enu(positions: Sequence[tuple[float, float, float]]) -> tuple[F64, tuple[float, ...]]:
    """(metres east, north, up (N, 3) of the medians, the medians) of latitude, longitude
    (degrees) and altitude (metres). To a millimetre over the extent of a survey."""
    geodetic = np.asarray(positions, np.float64)
    origin = np.median(geodetic, axis=0)
    latitude = math.radians(origin[0])
    curve = math.sqrt(1 - _ECCENTRICITY2 * math.sin(latitude) ** 2)
    along_meridian = _MAJOR * (1 - _ECCENTRICITY2) / curve**3
    along_parallel = _MAJOR / curve * math.cos(latitude)
    off = geodetic - origin
    enu = np.column_stack(
        [np.radians(off[:, 1]) * along_parallel, np.radians(off[:, 0]) * along_meridian, off[:, 2]]
    )
    return enu, (float(origin[0]), float(origin[1]), float(origin[2]))


def georeference(frames: Sequence[Frame]) -> WorldFrame | None:
    """Where the model belongs; None when nothing is known of that, or too little to tell."""
    up = _up(frames)
    located = [frame for frame in frames if frame.position is not None]
    if len(located) >= MIN_POSITIONS:
        centres = np.array([frame.centre for frame in located])
        positions = np.array([frame.position for frame in located], np.float64)
        fitted = _fitted(centres, positions, up)
        if fitted is not None:
            return fitted
    if up is None:
        return None
    centre = np.median(np.array([frame.centre for frame in frames]), axis=0)
    return WorldFrame(1.0, up, -up @ centre, True, False, None, 0)


def place(pc: Any, model: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Move a pycolmap model (`pc` is that module) to where its cameras say it is; what came of
    that. `rows`: the manifest's frames (`frame_records`)."""
    by_name = {row["name"]: row for row in rows}
    posed = [image for image in model.images.values() if image.has_pose and image.name in by_name]
    frames, origin = frames_of(posed, rows)
    world = georeference(frames)
    placed: dict[str, Any] = {
        "upright": world is not None and world.upright,
        "metric": world is not None and world.metric,
        "drift_m": None if world is None else world.drift_m,
        "origin": origin if world is not None and world.metric else None,
        "scale_from": "positions" if world is not None and world.metric else None,
        "scale_uncertainty": None if world is None else world.uncertainty,
        "altimeter_ratio": None,
        "turning_error_deg": turning_error_deg(
            {image.name: image.cam_from_world().rotation.matrix().T for image in posed}, rows
        ),
    }
    if world is None:
        return placed
    model.transform(pc.Sim3d(world.scale, pc.Rotation3d(world.rotation), world.translation))
    return placed | _measured(pc, model, [by_name[image.name] for image in posed], world.metric)


def frames_of(
    posed: Sequence[Any], rows: Sequence[Mapping[str, Any]]
) -> tuple[list[Frame], tuple[float, ...] | None]:
    """(one frame for each of these pycolmap images with a pose and a record, geodetic origin of the
    positions; None where they have none)."""
    by_name = {row["name"]: row for row in rows}
    positions, origin = _positions([by_name[image.name] for image in posed])
    frames = []
    for image in posed:
        gravity = by_name[image.name]["gravity"]
        turned = image.cam_from_world().rotation.matrix().T
        frames.append(
            Frame(
                centre=np.asarray(image.projection_center()),
                down=turned @ np.asarray(gravity, float) if gravity else None,
                position=positions.get(image.name),
            )
        )
    return frames, origin


def _positions(
    rows: Sequence[Mapping[str, Any]],
) -> tuple[dict[str, F64], tuple[float, ...] | None]:
    """(metres east, north, up by name, geodetic origin of those; None for a log's own origin)."""
    located = {row["name"]: row["position"] for row in rows if row.get("position")}
    if not located:
        return {}, None
    told = [position["at"] for position in located.values()]
    if next(iter(located.values()))["frame"] == "enu":
        return dict(zip(located, np.asarray(told, np.float64), strict=True)), None
    enu, origin = to_enu([tuple(at) for at in told])
    return dict(zip(located, enu, strict=True)), origin


def _measured(
    pc: Any, model: Any, rows: Sequence[Mapping[str, Any]], metric: bool
) -> dict[str, Any]:
    """What altimeter and depth say of an upright model: of a metric one whether they agree with it,
    to any other its metre, and height 0 at the surface."""
    depths, altitudes = (
        np.array([row.get(key) or math.nan for row in rows], np.float64)
        for key in ("depth_m", "altitude_m")
    )
    poses = {image.name: image for image in model.images.values() if image.has_pose}
    centres = np.array([poses[row["name"]].projection_center() for row in rows])
    scale, ratio = None, None
    if np.isfinite(altitudes).any():
        points = np.array([point.xyz for point in model.points3D.values()])
        scale = by_altitude(heights(centres, points), altitudes)
        ratio = None if scale is None else scale.metres
    if metric:
        return {"altimeter_ratio": ratio}
    source = "altitude"
    if scale is None:
        scale, source = by_depth(centres[:, 2], depths), "depth"
    if scale is None:
        return {}
    known = np.isfinite(depths)
    lift = float(np.median(-depths[known] - scale.metres * centres[known, 2])) if known.any() else 0
    model.transform(pc.Sim3d(scale.metres, pc.Rotation3d(np.eye(3)), np.array([0.0, 0.0, lift])))
    return {"metric": True, "scale_from": source, "scale_uncertainty": scale.uncertainty}


def _up(frames: Sequence[Frame]) -> F64 | None:
    """Rotation that turns the mean of the gravity readings to -z; None with too few."""
    downs = [frame.down for frame in frames if frame.down is not None]
    if len(downs) < MIN_READINGS:
        return None
    mean = np.sum(downs, axis=0)
    if np.linalg.norm(mean) < 0.5 * len(downs):
        return None
    return _turning(mean / np.linalg.norm(mean), np.array([0.0, 0.0, -1.0]))


def _turning(one: F64, two: F64) -> F64:
    """The shortest rotation from unit vector `one` to `two` (Rodrigues)."""
    axis, cosine = np.cross(one, two), float(one @ two)
    if cosine < -1 + 1e-9:
        other = np.eye(3)[int(np.argmin(np.abs(one)))]
        axis = np.cross(one, other)
        axis /= np.linalg.norm(axis)
        half: F64 = 2 * np.outer(axis, axis) - np.eye(3)
        return half
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    rotation: F64 = np.eye(3) + cross + cross @ cross / (1 + cosine)
    return rotation


def _fitted(centres: F64, positions: F64, up: F64 | None) -> WorldFrame | None:
    """Robust least squares similarity, with `up` kept where gravity gave it. None for positions
    that say too little: spread no wider than their errors, or along a line without gravity."""
    kept = np.ones(len(centres), bool)
    scale, rotation, shift = 1.0, np.eye(3), np.zeros(3)
    residuals = np.zeros(len(centres))
    for _ in range(ROUNDS):
        a, b = centres[kept], positions[kept]
        if up is None and side(b) < MIN_SIDE:
            return None
        solved = _similarity(a, b) if up is None else _about_up(a, b, up)
        if solved is None:
            return None
        scale, rotation, shift = solved
        residuals = np.linalg.norm(scale * centres @ rotation.T + shift - positions, axis=1)
        limit = max(MAX_RESIDUALS * 1.4826 * float(np.median(residuals)), 1e-6)
        kept = residuals <= limit
        if kept.sum() < MIN_POSITIONS:
            return None
    drift = float(np.median(residuals[kept]))
    spread = float(np.linalg.norm(positions[kept] - positions[kept].mean(0), axis=1).max())
    if spread < MIN_SPREAD * drift or spread <= 0:
        return None
    # Of least squares, with what is left over as the noise of one coordinate.
    noise = math.sqrt(float((residuals[kept] ** 2).mean()) / 3)
    size = math.sqrt(float(((positions[kept] - positions[kept].mean(0)) ** 2).sum()))
    return WorldFrame(
        scale, rotation, shift, True, True, drift, int(kept.sum()), uncertainty=noise / size
    )


def side(positions: F64) -> float:
    """Second over first extent."""
    singular = np.linalg.svd(positions - positions.mean(0), compute_uv=False)
    return float(singular[1] / max(singular[0], 1e-12))


def _similarity(a: F64, b: F64) -> tuple[float, F64, F64] | None:
    """Umeyama, PAMI 13(4), 1991."""
    mean_a, mean_b = a.mean(0), b.mean(0)
    u, singular, vt = np.linalg.svd((b - mean_b).T @ (a - mean_a))
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * signs) @ vt
    size = float(((a - mean_a) ** 2).sum())
    if size <= 0:
        return None
    scale = float((singular * signs).sum()) / size
    return (scale, rotation, mean_b - scale * rotation @ mean_a) if scale > 0 else None


def _about_up(a: F64, b: F64, up: F64) -> tuple[float, F64, F64] | None:
    """The similarity whose rotation is `up` followed by a turn about z: a line of positions is
    enough for that. As complex numbers, the horizontal fit is one division."""
    turned = a @ up.T
    mean_a, mean_b = turned.mean(0), b.mean(0)
    da, db = turned - mean_a, b - mean_b
    flat_a, flat_b = da[:, 0] + 1j * da[:, 1], db[:, 0] + 1j * db[:, 1]
    size = float((da**2).sum())
    if size <= 0:
        return None
    product = np.vdot(flat_a, flat_b)  # conj(a) . b
    # Least squares over scale and turn, heights included.
    scale = (abs(product) + float(da[:, 2] @ db[:, 2])) / size
    if scale <= 0 or abs(product) == 0:
        return None
    cosine, sine = product.real / abs(product), product.imag / abs(product)
    turn = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    rotation = turn @ up
    return float(scale), rotation, mean_b - float(scale) * rotation @ a.mean(0)
