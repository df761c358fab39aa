"""A track that bends where the camera did not turn is seen by the camera's gyroscopes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worker_agent.stages.sfm_turning import turning_error_deg

TIMES = np.arange(0, 20, 0.2)
CAMERAS = Rotation.from_euler(
    "yxz",
    np.column_stack([20 * np.sin(TIMES / 5), 8 * np.sin(TIMES), 4 * np.cos(TIMES)]),
    degrees=True,
)


def rows(orientation: Rotation) -> list[dict[str, Any]]:
    start = orientation[0].inv() * orientation  # it is told from where the camera began
    return [
        {"name": f"f{i}", "clip": "a", "time_s": float(t), "orientation": [w, x, y, z]}
        for i, (t, (x, y, z, w)) in enumerate(zip(TIMES, start.as_quat(), strict=True))
    ]


def poses(cameras: Rotation) -> dict[str, Any]:
    turned = Rotation.random(random_state=3) * cameras  # SfM's frame is its own
    return {f"f{i}": matrix for i, matrix in enumerate(turned.as_matrix())}


def test_the_same_turning_in_another_frame_agrees() -> None:
    assert turning_error_deg(poses(CAMERAS), rows(CAMERAS)) == pytest.approx(0, abs=1e-4)


def test_a_bent_track_is_seen_and_a_drift_hardly() -> None:
    down = np.array([0.0, 1.0, 0.0])
    bent = Rotation.from_rotvec(np.radians(3.0) * TIMES[:, None] * down) * CAMERAS
    error = turning_error_deg(poses(bent), rows(CAMERAS))
    assert error is not None and 8 < error < 15  # 3 degrees a second over some 4 s
    drifted = Rotation.from_rotvec(np.radians(0.02) * TIMES[:, None] * down) * CAMERAS
    error = turning_error_deg(poses(CAMERAS), rows(drifted))
    assert error is not None and error < 0.1


def test_too_little_is_no_figure() -> None:
    few = rows(CAMERAS)[:6]  # one second
    assert turning_error_deg(poses(CAMERAS), few) is None
    silent = [row | {"orientation": None} for row in rows(CAMERAS)]
    assert turning_error_deg(poses(CAMERAS), silent) is None
    apart = [row | {"clip": row["name"]} for row in rows(CAMERAS)]
    assert turning_error_deg(poses(CAMERAS), apart) is None
