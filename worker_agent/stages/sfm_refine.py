"""Puts the keypoints of a model where one patch of each point is seen again, to a few hundredths of
a pixel: SIFT finds them to a third of one.

A track along one line at one altitude hardly tells the focal length from the height, so that much
of the noise of the keypoints goes into both. On rendered tracks (docs/decisions/0011) the residuals
fell to a third of what they were, and with them the errors of focal length and centres.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from worker_agent.stages.sfm_patches import align

__all__ = ["refine"]

F64 = npt.NDArray[np.float64]

LEAST_ALIKE = 0.85  # of the patches of one point; unlike ones are no longer observations of it
MOST_SHIFT_PX = 1.5  # from SIFT's keypoint: further away, the patch has found something else
PICTURES_KEPT = 64  # decoded, of those that neighbouring tracks share
LEAST_KEPT = 0.5  # of the observations; with fewer the pictures are not what the patches expect


@dataclass(frozen=True, slots=True)
class _Camera:
    """Of one posed image: (3, 4) cam_from_world."""

    pose: F64

    @property
    def centre(self) -> F64:
        turned: F64 = -self.pose[:, :3].T @ self.pose[:, 3]
        return turned

    def seen(self, points: F64) -> F64:
        """World (N, 3) -> camera axes (N, 3)"""
        moved: F64 = points @ self.pose[:, :3].T + self.pose[:, 3]
        return moved


def refine(model: Any, images: Path) -> bool:
    """Move the keypoints of a pycolmap model, and take out those that do not look like their
    point's. Its poses and points stay as they are. False, and nothing done, for a model whose
    patches mostly do not agree."""
    posed = {image.image_id: image for image in model.images.values() if image.has_pose}
    order = {key: posed[key].name for key in posed}
    cameras = {key: _Camera(posed[key].cam_from_world().matrix()) for key in posed}
    normal = _normal(model, cameras)
    pairs: defaultdict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
    extra: list[tuple[int, int]] = []  # keypoints of an image that sees the point twice
    for key in sorted(model.points3D):
        track: dict[int, int] = {}
        for element in model.points3D[key].track.elements:
            if element.image_id in track:
                extra.append((element.image_id, element.point2D_idx))
            else:
                track[element.image_id] = element.point2D_idx
        views = sorted(track, key=order.__getitem__)
        middle = views[len(views) // 2]  # the least change of view to all others
        for view in views:
            if view != middle:
                pairs[middle, view].append((key, track[middle], track[view]))

    @lru_cache(maxsize=PICTURES_KEPT)
    def picture(image_id: int) -> npt.NDArray[np.uint8]:
        with Image.open(images / order[image_id]) as opened:
            return np.ascontiguousarray(opened.convert("L"))

    moved: list[tuple[int, int, F64]] = []
    unlike: list[tuple[int, int]] = []
    for first, second in sorted(pairs, key=lambda pair: (order[pair[0]], order[pair[1]])):
        rows = pairs[first, second]
        points = np.array([model.points3D[key].xyz for key, _, _ in rows])
        at = np.array([posed[first].points2D[index].xy for _, index, _ in rows])
        guess = np.array([posed[second].points2D[index].xy for _, _, index in rows])
        warps, tilts = _warps(
            (posed[first].camera, cameras[first]), (posed[second].camera, cameras[second]),
            points, normal,
        )  # fmt: skip
        # COLMAP's positions are whole at the corner of a pixel.
        found, alike = align(picture(first), picture(second), at - 0.5, guess - 0.5, warps, tilts)
        found += 0.5
        good = (alike > LEAST_ALIKE) & (np.linalg.norm(found - guess, axis=1) < MOST_SHIFT_PX)
        for (_, _, index), where, yes in zip(rows, found, good.tolist(), strict=True):
            if yes:
                moved.append((second, index, where))
            else:
                unlike.append((second, index))
    if len(moved) < LEAST_KEPT * (len(moved) + len(unlike)):
        return False
    for image_id, index, where in moved:
        model.images[image_id].points2D[index].xy = where
    for image_id, index in unlike + extra:
        if model.images[image_id].points2D[index].has_point3D():
            model.delete_observation(image_id, index)
    return True


def _normal(model: Any, cameras: dict[int, _Camera]) -> F64:
    """Of the plane through most of the points, towards the cameras: which way a patch lies."""
    points = np.array([point.xyz for point in model.points3D.values()])
    kept = points
    middle, normal = points.mean(axis=0), np.array([0.0, 0.0, 1.0])
    for _ in range(4):
        middle = kept.mean(axis=0)
        normal = np.linalg.svd(kept - middle, full_matrices=False)[2][-1]
        distance = np.abs((points - middle) @ normal)
        kept = points[distance <= np.quantile(distance, 0.9)]
    centres = np.array([camera.centre for camera in cameras.values()])
    return normal if np.median((centres - middle) @ normal) >= 0 else -normal


def _warps(
    first: tuple[Any, _Camera], second: tuple[Any, _Camera], points: F64, normal: F64
) -> tuple[F64, F64]:
    """How a patch of the plane at each point goes from one picture to the other: (warps (N, 2, 2),
    tilts (N, 2)) as `align` takes them."""
    lens, one = first
    other_lens, two = second
    towards = one.centre - points
    depth = np.linalg.norm(towards, axis=1)
    # Seen edge-on, the common plane says nothing of a point: its patch faces the camera then.
    facing = np.where(
        (np.abs(towards @ normal) > 0.2 * depth)[:, None], normal, towards / depth[:, None]
    )
    pixel = (depth / lens.mean_focal_length())[:, None]
    axis = np.eye(3)[int(np.argmin(np.abs(normal)))]
    along = np.cross(facing, axis)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    aside = np.cross(facing, along)

    def in_picture(camera: Any, view: _Camera, where: F64) -> F64:
        return np.asarray(camera.img_from_cam(view.seen(where)), np.float64)

    def spread(camera: Any, view: _Camera) -> F64:
        middle = in_picture(camera, view, points)
        return np.stack(
            [
                in_picture(camera, view, points + along * pixel) - middle,
                in_picture(camera, view, points + aside * pixel) - middle,
            ],
            axis=2,
        )

    before, after = spread(lens, one), spread(other_lens, two)
    flat = ~(np.abs(np.linalg.det(before)) > 1e-3) | ~np.isfinite(after).all(axis=(1, 2))
    before[flat] = after[flat] = np.eye(2)
    warps = after @ np.linalg.inv(before)
    # Depth in the other camera as a linear function of the pixel in the first: the last row of the
    # plane's homography.
    here = one.seen(points)
    facing_here = facing @ one.pose[:, :3].T
    turn = two.pose[:, :3] @ one.pose[:, :3].T
    shift = two.pose[:, 3] - turn @ one.pose[:, 3]
    row = turn[2] + shift[2] * facing_here / np.sum(facing_here * here, axis=1)[:, None]
    depth_there = np.sum(row * here, axis=1) / here[:, 2]
    tilts = row[:, :2] / lens.mean_focal_length() / depth_there[:, None]
    tilts[flat | ~np.isfinite(tilts).all(axis=1)] = 0.0
    return np.ascontiguousarray(warps), np.ascontiguousarray(tilts)
