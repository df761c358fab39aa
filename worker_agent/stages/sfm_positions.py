"""Positions of a model's cameras as observations of its adjustment, as sure as they prove to be.

What a log says of its own errors is not believed: how far the positions lie from the cameras of the
model, once it is put among them, is measured. That counts the model's errors in, too, so positions
weigh rather too little.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from worker_agent.stages.sfm_adjust import Positions, noise_px
from worker_agent.stages.sfm_georeference import (
    MAX_RESIDUALS,
    MIN_SIDE,
    frames_of,
    georeference,
    side,
)

__all__ = ["located"]

SIMILARITY = 7  # parameters that putting the model among its positions took from them
LEAST_M = 0.01


def located(pc: Any, model: Any, rows: Sequence[Mapping[str, Any]]) -> tuple[Any, Positions] | None:
    """(A copy of the pycolmap `model` among the positions of its cameras, those that count).
    `rows`: the manifest's frame records. None where positions do not place it, or lie along a line:
    these say nothing of its shape that would not turn with it."""
    known = {row["name"] for row in rows}
    posed = [image for image in model.images.values() if image.has_pose and image.name in known]
    frames, _ = frames_of(posed, rows)
    world = georeference(frames)
    if world is None or world.drift_m is None:
        return None
    names, measured, centres = [], [], []
    for image, frame in zip(posed, frames, strict=True):
        if frame.position is not None:
            names.append(image.name)
            measured.append(frame.position)
            centres.append(frame.centre)
    positions = np.array(measured)
    off = world.apply(np.array(centres)) - positions
    away = np.linalg.norm(off, axis=1)
    kept = away <= max(MAX_RESIDUALS * 1.4826 * float(np.median(away)), 1e-6)
    if side(positions[kept]) < MIN_SIDE:
        return None
    count = int(kept.sum())
    spent = 3 * count / max(1, 3 * count - SIMILARITY)
    level, up = (
        max(LEAST_M, math.sqrt(spent * float((part**2).mean())))
        for part in (off[kept, :2], off[kept, 2])
    )
    placed = copy.deepcopy(model)
    placed.transform(pc.Sim3d(world.scale, pc.Rotation3d(world.rotation), world.translation))
    at = {name: positions[i] for i, name in enumerate(names) if kept[i]}
    return placed, Positions(at, np.array([level, level, up]), noise_px(model))
