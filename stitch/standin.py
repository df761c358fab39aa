"""A sidecar for a cloud that has none: as if cameras had looked straight down on all of it."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from stitch.pairs import Known
from stitch.register import footprint_axes
from stitch.sidecar import Sidecar

STAND_IN = "stand_in"  # in `quality`: nothing can be registered to it
_DEPTH = 0.3  # of the extent, for want of cameras
_STEP = 0.25  # of the depth, between two cameras: all of the ground is about as near to one


def stand_in(cloud: Known) -> Sidecar:
    """Its points have no descriptors. Raises FileUnreadable."""
    points = cloud.view().footprint
    _, extent = cloud.extent()
    depth = _DEPTH * extent
    centre, axes = footprint_axes(points)
    up = np.cross(axes[0], axes[1])
    local = (points - centre) @ np.stack([*axes, up]).T
    cells = np.unique(np.round(local[:, :2] / (_STEP * depth)), axis=0) * _STEP * depth
    height = float(np.median(local[:, 2])) + depth
    centres = centre + cells @ axes + height * up
    camera = Rotation.from_matrix(np.stack([axes[0], -axes[1], -up]))
    frames, count = len(centres), len(points)
    unknown = np.full((frames, 3), np.nan)
    return Sidecar(
        points=points,
        descriptors=np.zeros((count, 128), np.uint8),
        track_length=np.full(count, 2, np.uint16),
        error_px=np.zeros(count, np.float32),
        rgb=np.zeros((count, 3), np.uint8),
        keyframe_names=tuple(f"above-{number}" for number in range(frames)),
        keyframe_hashes=np.zeros(frames, np.uint64),
        keyframe_time_s=np.full(frames, np.nan),
        rotations=np.tile(np.roll(camera.as_quat(), 1), (frames, 1)),
        translations=-camera.apply(centres),
        gravity=unknown,
        gps=unknown,
        quality={"median_depth": depth, STAND_IN: 1},
    )
