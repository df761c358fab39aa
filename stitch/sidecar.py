"""What a reconstruction leaves beside its PLY so that others can be registered to it later.

The 3D points with one descriptor each, and the keyframes' poses, all in the frame of the
reconstruction (the frame its gaussians are in too). Under 1 MB for a segment.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stitch.durable import replacing
from stitch.errors import FileUnreadable

MAX_POINTS = 5000
"""Points kept of one segment: 150 bytes each, 0.75 MB. Fewer when there are many keyframes."""

MAX_BYTES = 1_000_000
_MIN_POINTS = 1000
_POINT_BYTES, _HEADER_BYTES = 150, 8_000
_FRAME_BYTES = 120 + 4  # and its name, quoted

_VERSION = 3
_CELLS = 24  # per side of the grid that spreads the kept points over the ground
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
    # Names of the keypoints a point was made from (`stitch.identical`), in the order of the points
    key_counts: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))  # (P,)
    keys: npt.NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))
    # JPEGs one after the other (`thumbnail`): of which keyframe each is, and where it ends
    picture_rows: npt.NDArray[np.uint16] = field(default_factory=lambda: np.empty(0, np.uint16))
    picture_ends: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    pictures: npt.NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))

    def __post_init__(self) -> None:
        count, frames = len(self.points), len(self.keyframe_names)
        if len(self.key_counts) == 0:
            object.__setattr__(self, "key_counts", np.zeros(count, np.uint8))
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
            ("key_counts", np.uint8, (count,)),
            ("keys", np.uint32, (int(np.sum(self.key_counts)),)),
            ("picture_rows", np.uint16, (len(self.picture_ends),)),
            ("picture_ends", np.int64, (len(self.picture_ends),)),
            ("pictures", np.uint8, (int(np.sum(self.picture_ends[-1:])),)),
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

    def thumbnail(self, row: int) -> tuple[int, bytes] | None:
        """The picture (JPEG) nearest to keyframe `row`, and whose it is; None without any."""
        if len(self.picture_rows) == 0:
            return None
        nearest = int(np.abs(self.picture_rows.astype(np.int64) - row).argmin())
        start = int(self.picture_ends[nearest - 1]) if nearest else 0
        picture = self.pictures[start : int(self.picture_ends[nearest])]
        return int(self.picture_rows[nearest]), picture.tobytes()

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


def points_that_fit(names: Sequence[str], other_bytes: int) -> int:
    """How many points a sidecar with these keyframes, and `other_bytes` of keys and pictures, may
    keep to stay within MAX_BYTES; never so few that it could not be registered."""
    frames = sum(_FRAME_BYTES + len(name.encode()) for name in names)
    room = MAX_BYTES - _HEADER_BYTES - frames - other_bytes
    return min(MAX_POINTS, max(_MIN_POINTS, room // _POINT_BYTES))


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
