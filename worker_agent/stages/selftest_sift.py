"""Self-test of SIFT: two views of one random texture, a known shift apart, through pycolmap."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pycolmap
from numpy.typing import NDArray
from PIL import Image

_SHIFT = (24.0, 11.0)  # pixels right and down
_TOLERANCE_PX = 0.5
_MIN_MATCHES = 50
_SIZE = (240, 320)
_SEED = 7


def texture(seed: int = _SEED) -> NDArray[np.uint8]:
    """Blobs of several sizes, (rows, columns) larger than a view by the shift, grey."""
    generator = np.random.default_rng(seed)
    rows, columns = _SIZE[0] + 32, _SIZE[1] + 32
    total = np.zeros((rows, columns))
    for cell in (4, 8, 16, 32):
        coarse = generator.random((-(-rows // cell) + 1, -(-columns // cell) + 1))
        image = Image.fromarray((255 * coarse).astype(np.uint8))
        scaled = image.resize((columns, rows), Image.Resampling.BICUBIC)
        total += np.asarray(scaled, np.float64)
    return np.asarray(255 * (total - total.min()) / np.ptp(total), np.uint8)


def check() -> str:
    """What is wrong, in one line; "" when enough features match at the known shift."""
    pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value
    right, down = (int(value) for value in _SHIFT)
    whole = texture()
    with tempfile.TemporaryDirectory(prefix="cosma-selftest-") as folder:
        images = Path(folder) / "images"
        images.mkdir()
        rows, columns = _SIZE
        Image.fromarray(whole[:rows, :columns]).save(images / "a.png")
        Image.fromarray(whole[down : down + rows, right : right + columns]).save(images / "b.png")
        moved = _matches(Path(folder) / "database.db", images)
    if len(moved) < _MIN_MATCHES:
        return f"{len(moved)} features match, expected at least {_MIN_MATCHES}"
    found = np.median(moved, axis=0)
    if np.abs(found - _SHIFT).max() > _TOLERANCE_PX:
        return f"features moved by {found[0]:.1f}, {found[1]:.1f} pixels, expected {_SHIFT}"
    return ""


def _matches(database: Path, images: Path) -> NDArray[np.float64]:
    """(M, 2) pixels from the second view to the first of what matches after verification."""
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.num_threads = 1
    pycolmap.extract_features(
        database, images, extraction_options=extraction, device=pycolmap.Device.cpu
    )
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads = 1
    pycolmap.match_exhaustive(database, matching_options=matching, device=pycolmap.Device.cpu)
    with pycolmap.Database.open(database) as opened:
        points = {
            image.name: opened.read_keypoints(image.image_id)[:, :2]
            for image in opened.read_all_images()
        }
        names = {image.image_id: image.name for image in opened.read_all_images()}
        pairs, geometries = opened.read_two_view_geometries()
    moved = [np.empty((0, 2))]
    for pair, geometry in zip(pairs, geometries, strict=True):
        inliers = np.asarray(geometry.inlier_matches).reshape(-1, 2)
        first, second = (names[i] for i in pycolmap.pair_id_to_image_pair(pair))
        step = points[first][inliers[:, 0]] - points[second][inliers[:, 1]]
        moved.append(step if first == "a.png" else -step)
    return np.concatenate(moved).astype(np.float64)
