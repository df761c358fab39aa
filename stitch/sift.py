"""SIFT of one image, and of its mirror image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pycolmap

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """`place` (M,) x + iy in pixels; `turn` (M,) the keypoint's scale and direction as one complex
    number; `descriptors` (M,128) RootSIFT in bytes."""

    place: npt.NDArray[np.complex128]
    turn: npt.NDArray[np.complex128]
    descriptors: U8

    def __len__(self) -> int:
        return len(self.place)

    def mirrored(self) -> Features:
        """Of the image seen from behind (y counted upwards): what extraction from it would give.

        Mirrored about its own direction a descriptor has its rows of cells in reverse, and each
        gradient direction turned to the other side.
        """
        cells = self.descriptors.reshape(-1, 4, 4, 8)[:, ::-1, :, :]
        opposite = (-np.arange(8)) % 8
        return Features(self.place.conj(), self.turn.conj(), cells[..., opposite].reshape(-1, 128))


def extract(image: U8, most: int, *, fine: bool = False) -> Features:
    """The `most` largest keypoints of a grey image (H,W), one thread. `fine`: also those of the
    image enlarged twice, for four times the work."""
    options = pycolmap.FeatureExtractionOptions()
    options.num_threads = 1
    options.sift.max_num_features = most
    options.sift.first_octave = -1 if fine else 0
    extractor = pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu)
    keypoints, descriptors = extractor.extract_from_uint8_array(np.ascontiguousarray(image))
    places = np.array([complex(point.x, point.y) for point in keypoints], np.complex128)
    turns = np.array([complex(point.a11, point.a21) for point in keypoints], np.complex128)
    table = np.asarray(descriptors.data, np.uint8).reshape(len(places), 128)
    return Features(places, turns, table)
