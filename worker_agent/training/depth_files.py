"""Depth maps of a segment's frames: one zip of 16-bit PNGs, in the units of its SfM model.

`output/depth.zip` holds <frame>.png for each frame with a depth, and depth.json: {"unit": u,
"frames": {name: {...}}, ...}. A pixel of v is v * u deep along the camera's axis; 0: not known.
The picture is the undistorted one that training sees (`dataset.undistorted`), at any size.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["read_disparities", "write_depths"]

F32 = npt.NDArray[np.float32]

INDEX = "depth.json"
_MOST = 65_535


def write_depths(
    path: Path, maps: Iterable[tuple[str, F32]], deepest: float, about: Mapping[str, Any]
) -> None:
    """`maps`: (name of a frame, depths (H, W), 0 where not known), one at a time. `deepest` is the
    largest depth that is told; what lies farther is left out. `about` goes into the index."""
    unit = deepest / _MOST
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(temporary, "w") as packed:
        for name, depths in maps:
            steps = np.nan_to_num(depths / unit, posinf=0.0, neginf=0.0).round()
            steps[(steps < 0) | (steps > _MOST)] = 0
            png = io.BytesIO()
            Image.fromarray(steps.astype(np.uint16)).save(png, format="PNG")
            _add(packed, f"{name}.png", png.getvalue())
        _add(packed, INDEX, json.dumps({"unit": unit, **about}, indent=1).encode())
    temporary.replace(path)


def _add(packed: zipfile.ZipFile, name: str, data: bytes) -> None:
    # Without the time of day: the same depths are the same file.
    packed.writestr(zipfile.ZipInfo(name), data)


def read_disparities(path: Path, names: Sequence[str], size: tuple[int, int]) -> F32:
    """(len(names), H, W) inverse depths at `size` (w, h), 0 where none is known or the frame has
    none. Raises OSError, ValueError, KeyError or zipfile.BadZipFile for another file."""
    width, height = size
    found = np.zeros((len(names), height, width), np.float32)
    with zipfile.ZipFile(path) as packed:
        unit = float(json.loads(packed.read(INDEX))["unit"])
        held = set(packed.namelist())
        for at, name in enumerate(names):
            if f"{name}.png" not in held:
                continue
            with Image.open(io.BytesIO(packed.read(f"{name}.png"))) as image:
                # Nearest: between two depths at an edge there is nothing.
                steps = np.asarray(image.resize(size, Image.Resampling.NEAREST), np.float32)
            known = steps > 0
            found[at][known] = 1.0 / (steps[known] * np.float32(unit))
    return found
