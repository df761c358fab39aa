"""One colour of the water and one exposure for members that saw the same ground differently.

Per member and channel a gain and an offset, colour' = gain colour + offset, so that where two saw
the same ground its colours have the same mean and the same contrast. The members together keep
their mean gain and offset.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stitch.gaussians import SH_C0, Gaussians
from stitch.seams import COLOUR, COUNT, Tally
from stitch.sim3 import F64

_MIN_CELLS = 12  # that two members share
_MOST_GAIN = 2.0
_PULL = 1e-3  # towards no change, of members that nobody shares ground with


@dataclass(frozen=True, slots=True, eq=False)
class Tint:
    """`gain` (3,) and `offset` (3,), of RGB in 0..1."""

    gain: F64
    offset: F64

    def apply(self, gaussians: Gaussians) -> Gaussians:
        gain = self.gain.astype(np.float32)
        return replace(
            gaussians,
            sh0=gaussians.sh0 * gain + self._shift().astype(np.float32),
            shN=gaussians.shN * gain,
        )

    def of_coefficients(self, given: F64) -> F64:
        """The same of coefficients (C,K,3) of all bands."""
        changed = given * self.gain
        changed[:, 0] += self._shift()
        return changed

    def _shift(self) -> F64:
        """(3,) of band 0."""
        return np.asarray((0.5 * self.gain + self.offset - 0.5) / SH_C0, np.float64)


def tints(tallies: Sequence[Tally]) -> list[Tint]:
    """Of members whose gaussians were all added to `tallies`, one each."""
    means = []
    for tally in tallies:
        keys, sums = tally.total()
        means.append((keys, 0.5 + SH_C0 * sums[:, COLOUR] / np.maximum(sums[:, [COUNT]], 1)))
    pairs = []
    for a, b in itertools.combinations(range(len(tallies)), 2):
        _, here, there = np.intersect1d(
            means[a][0], means[b][0], assume_unique=True, return_indices=True
        )
        if len(here) >= _MIN_CELLS:
            pairs.append((a, b, means[a][1][here], means[b][1][there]))
    gains = np.exp(
        _balanced(
            len(tallies),
            [(a, b, np.log(_contrast(there) / _contrast(here)), len(here))
             for a, b, here, there in pairs],
        )
    )  # fmt: skip
    gains = np.clip(gains, 1.0 / _MOST_GAIN, _MOST_GAIN)
    offsets = _balanced(
        len(tallies),
        [
            (
                a,
                b,
                gains[b] * np.median(there, axis=0) - gains[a] * np.median(here, axis=0),
                len(here),
            )
            for a, b, here, there in pairs
        ],
    )
    return [Tint(gain, offset) for gain, offset in zip(gains, offsets, strict=True)]


def _contrast(colours: F64) -> F64:
    low, high = np.percentile(colours, [16, 84], axis=0)
    return np.asarray(np.maximum(high - low, 0.01), np.float64)


def _balanced(count: int, wanted: list[tuple[int, int, F64, int]]) -> F64:
    """(count,3) values with value[a] - value[b] as `wanted` (a, b, difference, weight) in the
    least-squares sense, and as small as that allows."""
    rows = [_PULL * np.eye(count)]
    right = [np.zeros((count, 3))]
    for a, b, difference, weight in wanted:
        row = np.zeros((1, count))
        row[0, a], row[0, b] = np.sqrt(weight), -np.sqrt(weight)
        rows.append(row)
        right.append(np.sqrt(weight) * difference[None])
    solved, *_ = np.linalg.lstsq(np.concatenate(rows), np.concatenate(right), rcond=None)
    return np.array(solved, np.float64)
