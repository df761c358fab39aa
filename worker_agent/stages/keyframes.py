"""Which of many frames to keep: one for each step of the picture, the sharpest near it.

A fixed frame rate gives too few frames where a vehicle hurries and hundreds of the same one where
it hovers. Here the next keyframe lies where the picture has moved by `step` of its width since the
last one; of the frames around there, the sharpest. Measured on a forward swim over a reef: 1 to 2 %
keeps what 2 to 4 frames a second would, and 4 % no longer registers.

Half of the picture may be sky or a far wall that hardly moves, so a frame is also kept after
`LONGEST` times the shortest interval, if the picture has moved at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Look", "Selection", "shift"]

F32 = npt.NDArray[np.float32]

BLOCK = 64  # pixels: motions up to a third of it are told reliably
COLUMNS, ROWS = 6, 3  # blocks spread over the picture
MIN_PEAK = 0.12  # of a phase correlation: unrelated blocks reach 0.1
MIN_BLOCKS = 4  # that must say something
SPREAD = 4 / 3  # frames between step / SPREAD and step * SPREAD compete
MAX_WAITING = 32  # that compete, however long a vehicle hovers there
LONGEST = 5.0
STILL = 0.002  # of the width: less is noise, or swell about a point


@dataclass(frozen=True, slots=True)
class Look:
    """One frame as the selection sees it: `index` is the caller's, `grey` (H, W)."""

    index: int
    time_s: float
    grey: F32
    sharpness: float


class Selection:
    """Takes frames in order and says which to keep, as soon as that is certain."""

    def __init__(self, step: float, shortest_s: float) -> None:
        """`step` of the width from keyframe to keyframe, never less than `shortest_s` apart."""
        self._low, self._high = step / SPREAD, step * SPREAD
        self._shortest_s = shortest_s
        self._last: Look | None = None
        self._waiting: list[Look] = []
        self.furthest = 0.0  # largest shift against the last keyframe seen so far

    def add(self, look: Look) -> list[int]:
        """Indices that are keyframes now that `look` is known; often none."""
        if self._last is None:
            self._last = look
            return [look.index]
        measured = shift(self._last.grey, look.grey)
        moved = 2 * self._high if measured is None else measured
        self.furthest = max(self.furthest, moved)
        apart_s = look.time_s - self._last.time_s + 1e-6
        overdue = apart_s >= LONGEST * self._shortest_s and moved >= STILL
        if apart_s < self._shortest_s or (moved < self._low and not overdue):
            return []
        self._waiting.append(look)
        if moved <= self._high and not overdue and len(self._waiting) < MAX_WAITING:
            return []
        return self._choose(beyond=moved > self._high)

    def end(self) -> list[int]:
        """The keyframes among the last frames."""
        kept: list[int] = []
        while self._waiting:
            kept += self._choose(beyond=False)
        return kept

    def _choose(self, *, beyond: bool) -> list[int]:
        """`beyond`: the newest lies outside the range, and is taken only where no other waits."""
        waiting, self._waiting = self._waiting, []
        near = (waiting[:-1] if beyond else waiting) or waiting
        best = max(range(len(near)), key=lambda place: near[place].sharpness)
        self._last = near[best]
        kept = [self._last.index]
        for later in waiting[best + 1 :]:
            kept += self.add(later)
        return kept


def shift(first: F32, second: F32) -> float | None:
    """Median length of the motion of the picture's blocks, as a share of its width; None when
    too few blocks can be followed: the motion is larger than a block shows, or there is nothing.

    Phase correlation (Kuglin and Hines 1975) of blocks at the same place, with a parabola through
    the peak. Both (H, W) of one size, at least a block large.
    """
    height, width = first.shape
    lefts = np.linspace(0, width - BLOCK, COLUMNS).round().astype(int)
    tops = np.linspace(0, height - BLOCK, ROWS).round().astype(int)
    corners = [(top, left) for top in tops for left in lefts]
    one, two = (
        np.stack([grey[t : t + BLOCK, x : x + BLOCK] for t, x in corners]).astype(np.float64)
        for grey in (first, second)
    )
    edge = np.hanning(BLOCK + 2)[1:-1]
    window = edge[:, None] * edge
    spectra = [np.fft.rfft2((b - b.mean(axis=(1, 2), keepdims=True)) * window) for b in (one, two)]
    cross = spectra[0].conj() * spectra[1]
    surfaces = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-9), s=(BLOCK, BLOCK))
    lengths = []
    for surface in surfaces:
        row, column = divmod(int(surface.argmax()), BLOCK)
        if surface[row, column] >= MIN_PEAK:
            down = _refined(surface[:, column], row)
            right = _refined(surface[row], column)
            lengths.append(float(np.hypot(down, right)))
    return float(np.median(lengths)) / width if len(lengths) >= MIN_BLOCKS else None


def _refined(line: npt.NDArray[np.float64], place: int) -> float:
    """Signed position of the peak at `place` of a periodic line."""
    before, peak, after = line[place - 1], line[place], line[(place + 1) % BLOCK]
    bend = before - 2 * peak + after
    offset = 0.5 * (before - after) / bend if bend < 0 else 0.0
    return (place if place < BLOCK // 2 else place - BLOCK) + float(np.clip(offset, -0.5, 0.5))
