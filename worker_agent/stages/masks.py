"""Which parts of the frames do not show the scene: the vehicle itself, a diver, a fish.

`sfm.mask` lists polygons of the picture that never show the scene, as shares of its width and
height: a frame, a lamp, a skid. A picture `masks/<frame name>.png` in the run directory, made by
`mask_program`, says the same of one frame; black is left out, as in COLMAP.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, UnidentifiedImageError

from worker_agent.messages import FailureCode
from worker_agent.stages.api import StageFailure

__all__ = ["MASKS", "PACKED", "draw", "mask_name", "pack", "prepare", "unpacked"]

MASKS = Path("sfm/masks")  # under the run directory, where SfM and Training look for them
PACKED = Path("output/masks.zip")  # the same, for another host
PER_FRAME = Path("masks")
MAX_MASKED_SHARE = 0.9  # of a picture: what is left could not be reconstructed

Polygon = Sequence[Sequence[float]]


def mask_name(frame: str) -> str:
    """As COLMAP looks for it."""
    return f"{frame}.png"


def draw(polygons: Sequence[Polygon], size: tuple[int, int]) -> Image.Image:
    """White, with the polygons black; `size` (width, height). Raises StageFailure CONFIG_INVALID
    for a polygon with fewer than three corners, or one that leaves nothing."""
    width, height = size
    picture = Image.new("L", size, 255)
    pen = ImageDraw.Draw(picture)
    for polygon in polygons:
        if len(polygon) < 3:
            raise _invalid(f"a polygon of sfm.mask has {len(polygon)} corners; 3 are needed")
        pen.polygon([(x * width, y * height) for x, y in polygon], fill=0)
    if float(np.mean(np.asarray(picture) == 0)) > MAX_MASKED_SHARE:
        raise _invalid(f"sfm.mask hides more than {100 * MAX_MASKED_SHARE:.0f} % of the picture")
    return picture


def prepare(
    run_dir: Path, names: Sequence[str], size: tuple[int, int], polygons: Sequence[Polygon]
) -> Path | None:
    """Write a mask for every frame and return their directory; None when there are none.

    Raises StageFailure CONFIG_INVALID.
    """
    own = {name: run_dir / PER_FRAME / mask_name(name) for name in names}
    if not polygons and not any(path.is_file() for path in own.values()):
        return None
    common = draw(polygons, size)
    target = run_dir / MASKS
    target.mkdir(parents=True, exist_ok=True)
    for name, path in own.items():
        picture = common
        if path.is_file():
            try:
                with Image.open(path) as opened:
                    particular = opened.convert("L").resize(size, Image.Resampling.NEAREST)
            except (OSError, UnidentifiedImageError) as error:
                raise _invalid(f"{PER_FRAME}/{path.name} is not a picture: {error}") from None
            both = np.minimum(np.asarray(common), np.asarray(particular))
            picture = Image.fromarray(np.where(both > 127, 255, 0).astype(np.uint8))
        picture.save(target / mask_name(name))
    return target


def pack(run_dir: Path) -> Path:
    """Write PACKED: the same bytes for the same masks."""
    target = run_dir / PACKED
    with zipfile.ZipFile(target, "w") as packed:
        for path in sorted((run_dir / MASKS).iterdir()):
            packed.writestr(zipfile.ZipInfo(path.name), path.read_bytes())
    return target


def unpacked(run_dir: Path) -> Path:
    """MASKS, also where only PACKED came to this host; there is no such directory without masks."""
    target, packed = run_dir / MASKS, run_dir / PACKED
    if packed.is_file() and not target.is_dir():
        staging = target.with_name(".masks")
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(staging)
        staging.replace(target)
    return target


def _invalid(message: str) -> StageFailure:
    return StageFailure(
        FailureCode.CONFIG_INVALID,
        message,
        advice="Correct sfm.mask of the acquisition (corners as shares from 0 to 1), then retry.",
    )
