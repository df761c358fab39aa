"""What a reconstruction leaves beside its PLY so that others can be registered to it later.

The 3D points with one descriptor each, and the keyframes' poses, all in the frame of the
reconstruction (the frame its gaussians are in too). Under 1 MB for a segment.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pycolmap

from stitch.durable import replacing
from stitch.errors import FileUnreadable

MAX_POINTS = 5500
"""Points kept of one segment: 149 bytes each, 0.8 MB."""

_VERSION = 2
_MIN_TRACK = 2
_CELLS = 24  # per side of the grid that spreads the kept points over the ground
_DESCRIPTOR_SCALE = 512.0  # as COLMAP stores unit-length RootSIFT in bytes
_Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Sidecar:
    """P points and K keyframes; one descriptor is a unit-length RootSIFT times 512, in bytes.

    Raises ValueError for shapes that do not agree; dtypes are converted.
    """

    points: npt.NDArray[np.float32]  # (P,3)
    descriptors: npt.NDArray[np.uint8]  # (P,128)
    track_length: npt.NDArray[np.uint16]  # (P,) images that see the point
    error_px: npt.NDArray[np.float32]  # (P,) mean reprojection error
    rgb: npt.NDArray[np.uint8]  # (P,3)
    keyframe_names: tuple[str, ...]
    keyframe_hashes: npt.NDArray[np.uint64]  # (K,) of the image files' bytes, 0 when unknown
    keyframe_time_s: npt.NDArray[np.float64]  # (K,) NaN when unknown
    rotations: npt.NDArray[np.float64]  # (K,4) wxyz, cam_from_world
    translations: npt.NDArray[np.float64]  # (K,3) cam_from_world
    gravity: npt.NDArray[np.float64]  # (K,3) unit vector in camera axes, NaN when unknown
    gps: npt.NDArray[np.float64]  # (K,3) latitude, longitude, altitude, NaN when unknown
    quality: dict[str, float | int | str]  # always holds median_depth, in units of the frame

    def __post_init__(self) -> None:
        count, frames = len(self.points), len(self.keyframe_names)
        for name, dtype, shape in (
            ("points", np.float32, (count, 3)),
            ("descriptors", np.uint8, (count, 128)),
            ("track_length", np.uint16, (count,)),
            ("error_px", np.float32, (count,)),
            ("rgb", np.uint8, (count, 3)),
            ("keyframe_hashes", np.uint64, (frames,)),
            ("keyframe_time_s", np.float64, (frames,)),
            ("rotations", np.float64, (frames, 4)),
            ("translations", np.float64, (frames, 3)),
            ("gravity", np.float64, (frames, 3)),
            ("gps", np.float64, (frames, 3)),
        ):
            array = np.ascontiguousarray(getattr(self, name), dtype=dtype)
            if array.shape != shape:
                raise ValueError(f"sidecar: {name} is {array.shape}, not {shape}")
            object.__setattr__(self, name, array)

    @property
    def median_depth(self) -> float:
        """Median distance of what the keyframes see along their optical axes, frame's unit."""
        return float(self.quality["median_depth"])

    def centres(self) -> npt.NDArray[np.float64]:
        """(K,3) camera centres in the frame of the reconstruction."""
        w, x, y, z = (self.rotations / np.linalg.norm(self.rotations, axis=1, keepdims=True)).T
        rotation = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        centres: npt.NDArray[np.float64] = -np.einsum("jik,kj->ki", rotation, self.translations)
        return centres

    def extent(self) -> tuple[npt.NDArray[np.float64], float]:
        """Centre (3,) of the points and the diagonal of their middle 90 %, frame's unit."""
        low, high = np.percentile(self.points.astype(np.float64), [5, 95], axis=0)
        return np.median(self.points, axis=0).astype(np.float64), float(np.linalg.norm(high - low))

    def save(self, path: Path) -> None:
        """Atomic and durable.

        Not compressed: pycolmap's wheel exports a zlib of its own, and deflate crashes in a
        process that loaded pycolmap before Python's zlib.
        """
        arrays: dict[str, Any] = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.name not in ("keyframe_names", "quality")
        }
        text = json.dumps(
            {"version": _VERSION, "keyframe_names": self.keyframe_names, "quality": self.quality}
        )
        arrays["header"] = np.frombuffer(text.encode(), np.uint8)
        with replacing(path) as stream:
            np.savez(stream, **arrays)

    @classmethod
    def load(cls, path: Path) -> Sidecar:
        """Inverse of `save`. Raises FileUnreadable."""
        try:
            with np.load(path, allow_pickle=False) as data:
                header = json.loads(data["header"].tobytes())
                if header["version"] != _VERSION:
                    raise ValueError(f"version {header['version']} is not {_VERSION}")
                quality = {"median_depth": float(header["quality"]["median_depth"])}
                values: dict[str, Any] = {
                    "keyframe_names": tuple(header["keyframe_names"]),
                    "quality": header["quality"] | quality,
                }
                names = [item.name for item in fields(cls) if item.name not in values]
                return cls(**values, **{name: data[name] for name in names})
        except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise FileUnreadable(f"{path}: not a registration sidecar: {error}") from None


def from_reconstruction(
    model: pycolmap.Reconstruction,
    database_path: Path,
    *,
    images: Path | None = None,
    times: dict[str, float],
    gravity: dict[str, tuple[float, float, float]],
    gps: dict[str, tuple[float, float, float]],
    quality: dict[str, float | int | str],
) -> Sidecar:
    """Sidecar of a COLMAP model whose keypoints and descriptors lie in `database_path`, and its
    images in `images`, whose contents let another reconstruction know the same frames.

    A point's descriptor is the mean of those of its track. `times` (seconds), `gravity` (camera
    axes) and `gps` are by image name and may lack images. Raises ValueError when the model has no
    points, FileUnreadable when the database lacks descriptors of its images.
    """
    ids = [i for i, point in model.points3D.items() if point.track.length() >= _MIN_TRACK]
    if not ids:
        raise ValueError("the reconstruction has no 3D points")
    points = np.array([model.points3D[i].xyz for i in ids])
    length = np.array([model.points3D[i].track.length() for i in ids])
    error = np.array([model.points3D[i].error for i in ids])
    kept = spread(points, length, error, MAX_POINTS)
    chosen = [model.points3D[ids[i]] for i in kept]
    posed = sorted((i for i in model.images.values() if i.has_pose), key=lambda image: image.name)
    poses = [image.cam_from_world() for image in posed]
    unknown = (float("nan"),) * 3
    return Sidecar(
        points=points[kept],
        descriptors=_mean_descriptors([p.track for p in chosen], database_path),
        track_length=np.minimum(length[kept], 65535),
        error_px=error[kept],
        rgb=np.array([p.color for p in chosen]),
        keyframe_names=tuple(image.name for image in posed),
        keyframe_hashes=np.array([_hash(images, i.name) for i in posed], np.uint64),
        keyframe_time_s=np.array([times.get(image.name, float("nan")) for image in posed]),
        rotations=np.array([np.roll(pose.rotation.quat, 1) for pose in poses]).reshape(-1, 4),
        translations=np.array([pose.translation for pose in poses]).reshape(-1, 3),
        gravity=np.array([gravity.get(image.name, unknown) for image in posed]).reshape(-1, 3),
        gps=np.array([gps.get(image.name, unknown) for image in posed]).reshape(-1, 3),
        quality=quality | {"median_depth": _median_depth(model, posed)},
    )


def spread(
    points: npt.NDArray[np.floating[Any]],
    track_length: npt.NDArray[Any],
    error_px: npt.NDArray[Any],
    limit: int,
) -> _Indices:
    """Row numbers of at most `limit` points: the best observed ones, evenly over the ground.

    Longest tracks alone would leave the rims bare, which is where another segment overlaps.
    """
    if len(points) <= limit:
        return np.arange(len(points))
    low, high = np.percentile(points, [1, 99], axis=0)
    axes = np.argsort(high - low)[-2:]
    size = max(float((high - low)[axes].max()) / _CELLS, 1e-12)
    cell = np.clip((points[:, axes] - low[axes]) // size, -1, _CELLS).astype(np.int64)
    key = cell[:, 0] * (_CELLS + 2) + cell[:, 1]
    best = np.lexsort((error_px, -track_length.astype(np.int64), key))
    starts = np.flatnonzero(np.diff(key[best], prepend=key[best[0]] - 1))
    rank = np.empty(len(points), np.int64)
    rank[best] = np.arange(len(points)) - np.repeat(starts, np.diff(starts, append=len(points)))
    order = np.lexsort((error_px, -track_length.astype(np.int64), rank))
    return np.sort(order[:limit])


def _hash(images: Path | None, name: str) -> int:
    """0 when there is no such image."""
    if images is None or not (images / name).is_file():
        return 0
    digest = hashlib.blake2b((images / name).read_bytes(), digest_size=8).digest()
    return max(1, int.from_bytes(digest, "little"))


def _mean_descriptors(tracks: list[Any], database_path: Path) -> npt.NDArray[np.uint8]:
    seen: dict[int, tuple[list[int], list[int]]] = {}
    for row, track in enumerate(tracks):
        for element in track.elements:
            rows, keypoints = seen.setdefault(element.image_id, ([], []))
            rows.append(row)
            keypoints.append(element.point2D_idx)
    total = np.zeros((len(tracks), 128), np.float32)
    with pycolmap.Database.open(str(database_path)) as database:
        for image_id, (rows, keypoints) in seen.items():
            table = np.asarray(database.read_descriptors(image_id).data)
            if table.ndim != 2 or table.shape[1] != 128 or len(table) <= max(keypoints):
                raise FileUnreadable(
                    f"{database_path}: image {image_id} lacks the SIFT descriptors of its keypoints"
                )
            np.add.at(total, rows, table[keypoints].astype(np.float32))
    unit = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
    stored: npt.NDArray[np.uint8] = np.clip(np.round(unit * _DESCRIPTOR_SCALE), 0, 255).astype(
        np.uint8
    )
    return stored


def _median_depth(model: pycolmap.Reconstruction, images: list[Any]) -> float:
    depths = []
    for image in images:
        ids = [p.point3D_id for p in image.points2D if p.has_point3D()]
        if ids:
            xyz = np.array([model.points3D[i].xyz for i in ids])
            pose = image.cam_from_world()
            depths.append(np.median((xyz @ pose.rotation.matrix().T + pose.translation)[:, 2]))
    return float(np.median(depths))
