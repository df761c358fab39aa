"""How deep the scene of a pycolmap model is and how steeply its rays meet: plain numbers. Pure."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np

__all__ = ["relief", "triangulation_deg"]

SAMPLED_POINTS = 2000


def relief(model: Any, depths: list[float]) -> float:
    """Median distance of the points to the plane through most of them, over the median depth.

    Least squares, refitted three times to the nearer nine tenths, so that stray points do not tilt
    it.
    """
    points = np.array([point.xyz for point in model.points3D.values()])
    kept = points
    distance = np.zeros(len(points))
    for _ in range(4):
        middle = kept.mean(axis=0)
        normal = np.linalg.svd(kept - middle, full_matrices=False)[2][-1]
        distance = np.abs((points - middle) @ normal)
        kept = points[distance <= np.quantile(distance, 0.9)]
    depth = statistics.median(depths)
    return float(np.median(distance)) / depth if depth > 0 and len(points) > 3 else 0.0


def triangulation_deg(model: Any) -> float:
    """Median over points of the angle between the first and last camera that see each."""
    centres = {i: image.projection_center() for i, image in model.images.items() if image.has_pose}
    points = list(model.points3D.values())
    angles: list[float] = []
    for point in points[:: max(1, len(points) // SAMPLED_POINTS)]:
        views = sorted({element.image_id for element in point.track.elements})
        first, last = (centres[i] - point.xyz for i in (views[0], views[-1]))
        scale = float(np.linalg.norm(first) * np.linalg.norm(last))
        if scale > 0:
            cosine = float(np.clip(first @ last / scale, -1.0, 1.0))
            angles.append(math.degrees(math.acos(cosine)))
    return statistics.median(angles) if angles else 0.0
