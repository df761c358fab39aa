"""What an operator looks at before deciding about a pair: both members from above, side by side,
with lines between what they have in common; and what a click into such a picture means."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stitch.above import Above, above
from stitch.errors import FileUnreadable
from stitch.pairs import Known
from stitch.pictures import write_png
from stitch.register import MAX_ERROR_DEPTHS, Edge, footprint_axes, match
from stitch.sidecar import Sidecar
from stitch.sim3 import F64, Sim3
from stitch.standin import stand_in

_SIDE = 900  # pixels of a panel, at most
_GAP = 24  # pixels between both
_MOST_LINES = 120
_REACH = 6  # pixels within which a click must meet the ground


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """A member from above; `frame` takes its own frame to the one that `seen` is drawn in."""

    seen: Above
    frame: Sim3
    sidecar: Sidecar

    def pixels(self, points: F64) -> F64:
        """(N,2) column and row of points (N,3) of the member's own frame."""
        at = self.frame.apply(points)
        columns = (at[:, 0] - self.seen.west) / self.seen.pixel
        return np.stack([columns, (self.seen.north - at[:, 1]) / self.seen.pixel], axis=1)

    def lifted(self, column: float, row: float) -> F64:
        """(3,) the ground at a pixel, in the member's own frame. Raises ValueError: none there."""
        rows, columns = np.nonzero(self.seen.known)
        away = np.hypot(rows - row, columns - column)
        best = int(away.argmin())
        if away[best] > _REACH:
            raise ValueError(f"no ground at {column:g},{row:g}")
        place = np.array(
            [
                self.seen.west + (column + 0.5) * self.seen.pixel,
                self.seen.north - (row + 0.5) * self.seen.pixel,
                float(self.seen.height[rows[best], columns[best]]),
            ]
        )
        lifted: F64 = self.frame.inverse().apply(place[None])[0]
        return lifted


def panel(known: Known) -> Panel:
    """Raises FileUnreadable: nothing to draw."""
    sidecar = known.sidecar or stand_in(known)
    _, axes = footprint_axes(sidecar.points)
    up = np.cross(axes[0], axes[1])
    if np.median(sidecar.centres() @ up) < np.median(sidecar.points @ up):
        axes = axes * np.array([[1.0], [-1.0]])
        up = -up
    frame = Sim3(1.0, np.stack([*axes, up]), np.zeros(3))
    seen = above(known.ply, frame, sidecar.median_depth, most=_SIDE)
    if seen is None:
        raise FileUnreadable(f"{known.ply}: too few gaussians to draw")
    return Panel(seen, frame, sidecar)


def draw_pair(path: Path, source: Panel, target: Panel, edge: Edge, ratio: float) -> int:
    """Both panels and lines between the inliers of `edge` as PNG; how many lines."""
    shapes = [one.seen.rgb.shape for one in (source, target)]
    paper = np.full((max(s[0] for s in shapes), _right(source) + shapes[1][1], 3), 40, np.uint8)
    paper[: shapes[0][0], : shapes[0][1]] = source.seen.rgb
    paper[: shapes[1][0], _right(source) :] = target.seen.rgb
    here, there = _inliers(source.sidecar, target.sidecar, edge, ratio)
    some = np.linspace(0, len(here) - 1, min(len(here), _MOST_LINES)).astype(int)
    starts, ends = source.pixels(here[some]), target.pixels(there[some])
    for number, (start, end) in enumerate(
        zip(starts, ends + np.array([_right(source), 0]), strict=True)
    ):
        hue = colorsys.hsv_to_rgb(number * 0.381966 % 1.0, 0.9, 1.0)
        _line(paper, start, end, np.array(hue) * 255)
    write_png(path, paper)
    return len(some)


def lift(source: Panel, target: Panel, click: tuple[float, float, float, float]) -> list[F64]:
    """The two places that clicks at (column, row, column, row) of a picture by `draw_pair` mean,
    each in its member's own frame. Raises ValueError where there is no ground."""
    return [source.lifted(click[0], click[1]), target.lifted(click[2] - _right(source), click[3])]


def _right(source: Panel) -> int:
    """The first column of the right panel."""
    return int(source.seen.rgb.shape[1]) + _GAP


def _inliers(source: Sidecar, target: Sidecar, edge: Edge, ratio: float) -> tuple[F64, F64]:
    if edge.sim3 is None:
        return np.empty((0, 3)), np.empty((0, 3))
    pairs = match(source.descriptors, target.descriptors, ratio)
    here = source.points[pairs[:, 0]].astype(np.float64)
    there = target.points[pairs[:, 1]].astype(np.float64)
    error = np.linalg.norm(edge.sim3.apply(here) - there, axis=1)
    good = error < MAX_ERROR_DEPTHS * target.median_depth
    return here[good], there[good]


def _line(paper: npt.NDArray[np.uint8], start: F64, end: F64, colour: F64) -> None:
    count = int(np.abs(end - start).max()) + 2
    at = np.linspace(start, end, count).astype(int)
    inside = ((at >= 0) & (at < paper.shape[1::-1])).all(axis=1)
    paper[at[inside, 1], at[inside, 0]] = colour
