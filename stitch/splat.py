"""Writing gaussians as .splat: 32 bytes each, no header, view-independent colour only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from stitch.durable import replacing
from stitch.gaussians import SH_C0, Gaussians

ROW = np.dtype(
    [("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)]
)
"""Layout of one gaussian: scale is linear, alpha the opacity, rotation wxyz as 128 + 128 q."""


def write_splat(path: Path, gaussians: Gaussians) -> None:
    """Atomic and durable; sorted by volume times opacity, largest first, as viewers that draw
    while loading expect (the order of antimatter15/splat's convert.py)."""
    volume = gaussians.scales.astype(np.float64).sum(axis=1)  # logarithm of it
    order = np.argsort(-(volume + np.log(np.maximum(_opacity(gaussians), 1e-300))), kind="stable")
    with replacing(path) as stream:
        stream.write(rows_of(gaussians.select(order)).data)


def rows_of(gaussians: Gaussians) -> npt.NDArray[np.void]:
    """(N,) of ROW, in the order of the gaussians."""
    rows = np.empty(len(gaussians), ROW)
    rows["position"] = gaussians.means
    rows["scale"] = np.exp(gaussians.scales)
    rows["rgba"][:, :3] = np.clip((0.5 + SH_C0 * gaussians.sh0) * 255.0, 0, 255).round()
    rows["rgba"][:, 3] = (_opacity(gaussians) * 255.0).round()
    quats = gaussians.quats
    unit = quats / np.maximum(np.linalg.norm(quats, axis=1, keepdims=True), 1e-12)
    rows["rotation"] = np.clip(unit * 128.0 + 128.0, 0, 255).round()
    return rows


def weight_of(rows: npt.NDArray[np.void]) -> npt.NDArray[np.float64]:
    """(N,) volume times opacity of rows of ROW."""
    volume = rows["scale"].astype(np.float64).prod(axis=1)
    return np.asarray(volume * rows["rgba"][:, 3], np.float64)


def _opacity(gaussians: Gaussians) -> npt.NDArray[np.float64]:
    opacity: npt.NDArray[np.float64] = 1.0 / (1.0 + np.exp(-gaussians.opacities.astype(np.float64)))
    return opacity
