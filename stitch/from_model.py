"""The registration sidecar of a COLMAP model."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pycolmap

from stitch.errors import FileUnreadable
from stitch.identical import MAX_KEYS, keys_of
from stitch.sidecar import Sidecar, points_that_fit, spread
from stitch.thumbnails import thumbnails

_MIN_TRACK = 2
_DESCRIPTOR_SCALE = 512.0  # as COLMAP stores unit-length RootSIFT in bytes


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
    posed = sorted((i for i in model.images.values() if i.has_pose), key=lambda image: image.name)
    names = tuple(image.name for image in posed)
    pictures = thumbnails(images, names) if images else {}
    size = 4 * MAX_KEYS + sum(len(each) for each in pictures.values())
    kept = spread(points, length, error, points_that_fit(names, size))
    chosen = [model.points3D[ids[i]] for i in kept]
    hashes = [_hash(images, name) for name in names]
    counts, keys = keys_of(
        model, chosen, {image.image_id: value for image, value in zip(posed, hashes, strict=True)}
    )
    poses = [image.cam_from_world() for image in posed]
    unknown = (float("nan"),) * 3
    return Sidecar(
        points=points[kept],
        descriptors=_mean_descriptors([p.track for p in chosen], database_path),
        track_length=np.minimum(length[kept], 65535),
        error_px=error[kept],
        rgb=np.array([p.color for p in chosen]),
        keyframe_names=names,
        keyframe_hashes=np.array(hashes, np.uint64),
        keyframe_time_s=np.array([times.get(image.name, float("nan")) for image in posed]),
        rotations=np.array([np.roll(pose.rotation.quat, 1) for pose in poses]).reshape(-1, 4),
        translations=np.array([pose.translation for pose in poses]).reshape(-1, 3),
        gravity=np.array([gravity.get(image.name, unknown) for image in posed]).reshape(-1, 3),
        gps=np.array([gps.get(image.name, unknown) for image in posed]).reshape(-1, 3),
        quality=quality | {"median_depth": _median_depth(model, posed)},
        key_counts=counts,
        keys=keys,
        picture_rows=np.array(list(pictures), np.uint16),
        picture_ends=np.cumsum([len(each) for each in pictures.values()], dtype=np.int64),
        pictures=np.frombuffer(b"".join(pictures.values()), np.uint8),
    )


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
