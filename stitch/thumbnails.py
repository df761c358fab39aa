"""Small pictures of some keyframes, kept with a sidecar: what an operator looks at when a pair is
held and the frames are gone or on another host."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap

MAX_PICTURES = 12
_WIDE = 160  # pixels
_QUALITY = 60


def thumbnails(images: Path, names: Sequence[str]) -> dict[int, bytes]:
    """JPEGs by row of `names`, spread over them; what cannot be read has none."""
    spread = np.linspace(0, max(len(names) - 1, 0), min(MAX_PICTURES, len(names)))
    made: dict[int, bytes] = {}
    with tempfile.TemporaryDirectory() as scratch:
        small = Path(scratch) / "small.jpg"
        for row in np.unique(spread.round().astype(int)).tolist():
            if not (images / names[row]).is_file():
                continue
            picture = pycolmap.Bitmap.read(str(images / names[row]), True)
            if picture is None:
                continue
            picture.rescale(_WIDE, max(1, round(_WIDE * picture.height / picture.width)))
            picture.set_jpeg_quality(_QUALITY)
            if picture.write(str(small)):
                made[row] = small.read_bytes()
    return made
