"""Training views from frames and an SfM model: undistorted, resized, split, normalised."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pycolmap
import torch
from PIL import Image
from torch import Tensor

from worker_agent.training.depth_files import read_disparities

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

MIN_VIEWS = 3
MIN_POINTS = 16
MIN_PIXELS = 16  # of the shorter side
_SHOWN = 250  # of a mask's 255: pixels on its edge are left out, and the border that lenses leave


class DatasetUnusable(ValueError):
    """The model or its frames cannot be trained on; the text says what is wrong, in one line."""


@dataclass(frozen=True, slots=True)
class Normalisation:
    """normalised = scale * (world - centre): the median view depth becomes 1.

    No rotation, so that orientations and spherical harmonics need no change to undo it.
    """

    scale: float
    centre: tuple[float, float, float]

    def apply(self, points: F64) -> F64:
        """(N, 3) world -> normalised."""
        moved: F64 = self.scale * (points - np.asarray(self.centre))
        return moved

    def undo(self, points: F64) -> F64:
        """(N, 3) normalised -> world."""
        moved: F64 = points / self.scale + np.asarray(self.centre)
        return moved


@dataclass(frozen=True, slots=True)
class Dataset:
    """V views of one size, in normalised coordinates, and the P points of the SfM model."""

    names: tuple[str, ...]
    images: Tensor  # (V, H, W, 3) uint8
    viewmats: Tensor  # (V, 4, 4) float32 world to camera
    intrinsics: Tensor  # (V, 3, 3) float32, pixels of `images`
    train: tuple[int, ...]  # indices of views
    test: tuple[int, ...]
    points: F32  # (P, 3)
    colors: F32  # (P, 3) in [0, 1]
    normalisation: Normalisation
    masks: Tensor | None = None  # (V, H, W) bool: where a view shows the scene; None: everywhere
    disparities: Tensor | None = None  # (V, H // 2, W // 2) inverse depths, 0: not known

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return int(self.images.shape[2]), int(self.images.shape[1])


def split_views(count: int, test_every: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(train, test) indices: every `test_every`-th view is held out, at least one always is.

    Held-out views start half a period in, so that they lie between training views.
    """
    test = tuple(range(test_every // 2, count, test_every)) or (count // 2,)
    return tuple(i for i in range(count) if i not in test), test


def load_dataset(
    frames: Path,
    model: Path,
    *,
    width: int,
    test_every: int,
    stride: int = 1,
    masks: Path | None = None,
    depths: Path | None = None,
) -> Dataset:
    """Read the COLMAP binary model in `model` and its images from `frames`; with a `stride` only
    every n-th of the frames, whichever the model has. `masks`, where there is such a directory,
    holds <image name>.png, black where an image does not show the scene. `depths`, where there is
    such a file, is one of `depth_files`.

    Images are undistorted in memory and resized to `width` pixels (never enlarged). Raises
    DatasetUnusable for an unreadable or too small model, or a missing or broken file.
    """
    try:
        reconstruction = pycolmap.Reconstruction(str(model))
    except (ValueError, RuntimeError, OSError) as error:
        raise DatasetUnusable(f"{model}: not a COLMAP model: {_line(error)}") from None
    posed = sorted(
        (image for image in reconstruction.images.values() if image.has_pose),
        key=lambda image: str(image.name),
    )
    if stride > 1:
        used = {path.name for path in sorted(frames.glob("*.jpg"))[::stride]}
        posed = [image for image in posed if image.name in used]
    if len(posed) < MIN_VIEWS:
        raise DatasetUnusable(f"{model}: {len(posed)} posed images, at least {MIN_VIEWS} needed")
    if reconstruction.num_points3D() < MIN_POINTS:
        raise DatasetUnusable(
            f"{model}: {reconstruction.num_points3D()} points, at least {MIN_POINTS} needed"
        )
    points = np.array([point.xyz for point in reconstruction.points3D.values()], np.float64)
    colors = np.array([point.color for point in reconstruction.points3D.values()], np.float32)
    poses = np.tile(np.eye(4), (len(posed), 1, 1))
    poses[:, :3] = [image.cam_from_world().matrix() for image in posed]
    normalisation = _normalisation(points, poses)

    size: tuple[int, int] | None = None
    images, intrinsics, shown = [], [], []
    masked = masks is not None and masks.is_dir()
    for image in posed:
        camera = reconstruction.cameras[image.camera_id]
        pixels, matrix = undistorted(frames / image.name, camera, width, size)
        size = (pixels.shape[1], pixels.shape[0])
        if masks is not None and masked:
            mask, _ = undistorted(masks / f"{image.name}.png", camera, width, size)
            shown.append(mask[..., 0] > _SHOWN)
        images.append(pixels)
        intrinsics.append(matrix)
    if size is None or min(size) < MIN_PIXELS:
        raise DatasetUnusable(f"{frames}: images of {size} pixels are too small to train on")
    viewmats = poses.copy()
    centre = np.asarray(normalisation.centre)
    viewmats[:, :3, 3] = normalisation.scale * (poses[:, :3, 3] + poses[:, :3, :3] @ centre)
    train, test = split_views(len(posed), test_every)
    names = tuple(str(image.name) for image in posed)
    return Dataset(
        names=names,
        images=torch.from_numpy(np.stack(images)),
        viewmats=torch.from_numpy(viewmats.astype(np.float32)),
        intrinsics=torch.from_numpy(np.stack(intrinsics).astype(np.float32)),
        train=train,
        test=test,
        points=normalisation.apply(points).astype(np.float32),
        colors=colors / np.float32(255.0),
        normalisation=normalisation,
        masks=torch.from_numpy(np.stack(shown)) if shown else None,
        disparities=_disparities(depths, names, size, normalisation),
    )


def _disparities(
    path: Path | None, names: tuple[str, ...], size: tuple[int, int], normalisation: Normalisation
) -> Tensor | None:
    if path is None or not path.is_file():
        return None
    half = max(1, size[0] // 2), max(1, size[1] // 2)
    try:
        found = read_disparities(path, names, half)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DatasetUnusable(f"{path}: not a file of depth maps: {_line(error)}") from None
    return torch.from_numpy(found / np.float32(normalisation.scale))


def _normalisation(points: F64, poses: F64) -> Normalisation:
    """Medians throughout, so that a few wild points or poses do not shrink the scene."""
    centre = np.median(points, axis=0)
    sample = points[:: max(1, len(points) // 2000)]
    depths = np.einsum("vj,pj->vp", poses[:, 2, :3], sample) + poses[:, 2, 3, None]
    depths = depths[depths > 0]
    depth = float(np.median(depths)) if depths.size else 0.0
    if not np.isfinite(depth) or depth <= 0.0:
        raise DatasetUnusable("the SfM model has no points in front of its cameras")
    return Normalisation(1.0 / depth, (float(centre[0]), float(centre[1]), float(centre[2])))


def undistorted(
    path: Path, camera: Any, width: int, size: tuple[int, int] | None
) -> tuple[npt.NDArray[np.uint8], F64]:
    """(pixels (H, W, 3), pinhole matrix (3, 3)) of one frame; `size` (w, h) forces the size."""
    if not path.is_file():
        raise DatasetUnusable(f"{path}: the SfM model names this frame, but it is not there")
    bitmap = pycolmap.Bitmap.read(str(path), True)
    if bitmap is None:
        raise DatasetUnusable(f"{path}: cannot be read as an image")
    if not camera.is_undistorted():
        bitmap, camera = pycolmap.undistort_image(pycolmap.UndistortCameraOptions(), bitmap, camera)
    if size is None:
        target = min(width, camera.width)
        size = (target, max(1, round(camera.height * target / camera.width)))
    image = Image.fromarray(bitmap.to_array()).convert("RGB")
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
    matrix = np.array(camera.calibration_matrix(), np.float64)
    # Pixel centres lie at +0.5, so that a change of size is a plain scaling.
    matrix[0] *= size[0] / camera.width
    matrix[1] *= size[1] / camera.height
    return pixels, matrix


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
