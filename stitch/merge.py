"""One scene from members that overlap: who keeps which gaussians, and the scene's own sidecar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from stitch.sidecar import Sidecar, spread
from stitch.sim3 import F64, Sim3

MAX_SCENE_POINTS = 12_000
"""Points kept of a merged scene: 1.8 MB, and a pair still registers in seconds."""

_FAVOUR = 1.02  # distances this near count as equal: reconstructions of one track differ by 1 %
_COVER_DEPTHS = 0.2  # a member has seen a place when it has a 3D point this near, in its depths
_SAME_PLACE_DEPTHS = 0.01
_SAME_LOOK = 0.8  # cosine of two descriptors; unrelated ones stay below 0.6


@dataclass(frozen=True, slots=True)
class Member:
    """`pose` takes the member's own frame to the scene's."""

    name: str
    pose: Sim3
    sidecar: Sidecar


class Territory:
    """Which member keeps a place that several have seen: the one whose camera came nearest.

    Measured against the density of single captures, this keeps 0.98 of it; concatenation keeps
    1.75 of it. When two came equally near (one track in two clips) the first member keeps the
    place whole. A gaussian reaches over the border it is centred beside, so no seam opens. Only
    members that have seen the place compete, so that no hole is cut where a camera passed close
    by and looked elsewhere.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._cameras = [cKDTree(m.pose.apply(m.sidecar.centres())) for m in members]
        self._points = [cKDTree(m.pose.apply(m.sidecar.points)) for m in members]
        self._reach = [_COVER_DEPTHS * m.pose.scale * m.sidecar.median_depth for m in members]

    def keeps(self, own: int, means: F64) -> npt.NDArray[np.bool_]:
        """Mask (N,) of the gaussians at `means` (N,3, scene's frame) that member `own` keeps.
        Those that are not finite are nobody's."""
        kept = np.asarray(np.isfinite(means).all(axis=1))
        places = means[kept]
        distance, _ = self._cameras[own].query(places)
        stays = np.ones(len(places), np.bool_)
        for other, (cameras, points) in enumerate(zip(self._cameras, self._points, strict=True)):
            if other == own:
                continue
            theirs, _ = cameras.query(places)
            loses = theirs <= _FAVOUR * distance if other < own else _FAVOUR * theirs < distance
            rivals = np.flatnonzero(stays & loses)
            seen, _ = points.query(places[rivals], distance_upper_bound=self._reach[other])
            stays[rivals[np.isfinite(seen)]] = False
        kept[kept] = stays
        return kept


def merge_sidecars(members: Sequence[Member]) -> Sidecar:
    """The scene's sidecar: all keyframes, named "member/keyframe", and at most MAX_SCENE_POINTS
    points. Of a place that several members hold, one point stays, else the ratio test of a later
    registration would refuse exactly the best confirmed points."""
    depth = float(np.median([m.pose.scale * m.sidecar.median_depth for m in members]))
    points = np.concatenate([m.pose.apply(m.sidecar.points) for m in members])
    owner = np.concatenate([np.full(len(m.sidecar.points), i) for i, m in enumerate(members)])
    descriptors = np.concatenate([m.sidecar.descriptors for m in members])
    length = np.concatenate([m.sidecar.track_length for m in members])
    error = np.concatenate([m.sidecar.error_px for m in members])
    single = _without_doubles(points, owner, descriptors, length, _SAME_PLACE_DEPTHS * depth)
    kept = single[spread(points[single], length[single], error[single], MAX_SCENE_POINTS)]
    rotations, translations = zip(*(_poses(m) for m in members), strict=True)
    return Sidecar(
        points=points[kept].astype(np.float32),
        descriptors=descriptors[kept],
        track_length=length[kept],
        error_px=error[kept],
        rgb=np.concatenate([m.sidecar.rgb for m in members])[kept],
        keyframe_names=tuple(
            f"{m.name}/{frame}" for m in members for frame in m.sidecar.keyframe_names
        ),
        keyframe_time_s=np.concatenate([m.sidecar.keyframe_time_s for m in members]),
        rotations=np.concatenate(rotations),
        translations=np.concatenate(translations),
        gravity=np.concatenate([m.sidecar.gravity for m in members]),
        gps=np.concatenate([m.sidecar.gps for m in members]),
        quality={"median_depth": depth, "members": len(members)},
    )


def _poses(member: Member) -> tuple[F64, F64]:
    """cam_from_scene of the member's keyframes: quaternions (K,4) wxyz, translations (K,3)."""
    own = Rotation.from_quat(np.roll(member.sidecar.rotations, -1, axis=1))
    turned = own * Rotation.from_matrix(member.pose.rotation).inv()
    centres = member.pose.apply(member.sidecar.centres())
    return np.roll(turned.as_quat(), 1, axis=1), -turned.apply(centres)


def _without_doubles(
    points: F64,
    owner: npt.NDArray[np.int64],
    descriptors: npt.NDArray[np.uint8],
    track_length: npt.NDArray[np.uint16],
    radius: float,
) -> npt.NDArray[np.intp]:
    """Rows left when, of two points of different members at one place that look the same, the
    less observed one goes."""
    pairs = cKDTree(points).query_pairs(radius, output_type="ndarray")
    pairs = pairs[owner[pairs[:, 0]] != owner[pairs[:, 1]]]
    unit = descriptors.astype(np.float32)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1.0)
    alike = np.einsum("ij,ij->i", unit[pairs[:, 0]], unit[pairs[:, 1]]) > _SAME_LOOK
    first, second = pairs[alike].T
    loser = np.where(track_length[first] < track_length[second], first, second)
    return np.setdiff1d(np.arange(len(points)), loser)
