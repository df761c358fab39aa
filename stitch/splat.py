"""Writing gaussians as .splat: 32 bytes each, no header, view-independent colour only."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stitch.durable import replacing
from stitch.gaussians import SH_C0, Gaussians

ROW = np.dtype(
    [("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)]
)
"""Layout of one gaussian: scale is linear, alpha the opacity, rotation wxyz as 128 + 128 q."""


def write_splat(path: Path, gaussians: Gaussians) -> None:
    """Atomic and durable; sorted by volume times opacity, largest first, as viewers that draw
    while loading expect (the order of antimatter15/splat's convert.py)."""
    opacity = 1.0 / (1.0 + np.exp(-gaussians.opacities.astype(np.float64)))
    volume = gaussians.scales.astype(np.float64).sum(axis=1)  # logarithm of it
    order = np.argsort(-(volume + np.log(np.maximum(opacity, 1e-300))), kind="stable")
    rows = np.empty(len(gaussians), ROW)
    rows["position"] = gaussians.means[order]
    rows["scale"] = np.exp(gaussians.scales[order])
    rows["rgba"][:, :3] = np.clip((0.5 + SH_C0 * gaussians.sh0[order]) * 255.0, 0, 255).round()
    rows["rgba"][:, 3] = (opacity[order] * 255.0).round()
    quats = gaussians.quats[order]
    unit = quats / np.maximum(np.linalg.norm(quats, axis=1, keepdims=True), 1e-12)
    rows["rotation"] = np.clip(unit * 128.0 + 128.0, 0, 255).round()
    with replacing(path) as stream:
        stream.write(rows.data)
