"""How well a model's camera poses turn as the camera's own gyroscopes say. Pure.

Gravity sees a model that is bent up or sideways, but not one whose track bends like a banana in the
horizontal plane. The camera's orientation sees that, too. It drifts with time, so that only frames
a few seconds apart are compared.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["turning_error_deg"]

F64 = npt.NDArray[np.float64]

LEAST_S, MOST_S = 1.0, 8.0  # between the two frames of a pair
MIN_PAIRS = 10


def turning_error_deg(
    rotations: Mapping[str, Sequence[Sequence[float]]], rows: Sequence[Mapping[str, Any]]
) -> float | None:
    """Median over pairs of frames of one clip of the angle between both relative rotations.

    `rotations`: camera to model, by frame; `rows`: the manifest's frames. None with too few pairs.
    """
    told = [row for row in rows if row.get("orientation") and row["name"] in rotations]
    errors = []
    for index, one in enumerate(told):
        for two in told[index + 1 :]:
            apart = two["time_s"] - one["time_s"]
            if two["clip"] != one["clip"] or apart > MOST_S:
                break
            if apart >= LEAST_S:
                seen = np.asarray(rotations[one["name"]]).T @ np.asarray(rotations[two["name"]])
                felt = _matrix(one["orientation"]).T @ _matrix(two["orientation"])
                errors.append(_angle_deg(seen.T @ felt))
    return statistics.median(errors) if len(errors) >= MIN_PAIRS else None


def _matrix(quaternion: Sequence[float]) -> F64:
    w, x, y, z = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _angle_deg(rotation: F64) -> float:
    cosine = (float(np.trace(rotation)) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))
