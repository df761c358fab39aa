"""One pair of members by whatever both have: common frames, sidecars, or only their clouds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stitch.clouds import solid_points
from stitch.errors import FileUnreadable
from stitch.raster import MAX_POINTS, View, register_views, view
from stitch.register import Edge, register
from stitch.shared_frames import register_frames
from stitch.sidecar import Sidecar
from stitch.sim3 import F64


class Known:
    """What is known of a member: the sidecar of its reconstruction, or its PLY alone (gaussians or
    a plain coloured cloud, from elsewhere). Its picture from above is drawn when first asked for.
    """

    def __init__(self, ply: Path, sidecar: Sidecar | None) -> None:
        self.ply, self.sidecar = ply, sidecar
        self._view: View | None = None

    def view(self) -> View:
        """Raises FileUnreadable: no PLY with colours, or too few points to draw."""
        if self._view is None:
            try:
                self._view = view(*solid_points(self.ply, MAX_POINTS))
            except ValueError as error:
                raise FileUnreadable(f"{self.ply}: {error}") from None
        return self._view

    def extent(self) -> tuple[F64, float]:
        """Centre (3,) and the diagonal of the middle 90 %, in the member's own unit."""
        if self.sidecar is not None:
            return self.sidecar.extent()
        seen = self.view()
        return np.median(seen.footprint, axis=0).astype(np.float64), seen.extent


def register_pair(
    source_number: int, source: Known, target_number: int, target: Known, ratio: float
) -> Edge:
    """Best Sim3 from `source` to `target` with its evidence, for `stitch.score` to judge.

    Two sidecars are compared by their points, and by common frames where they have some; when one
    of the two has none, both are compared as seen from above. Raises FileUnreadable as `view`.
    """
    if source.sidecar is None or target.sidecar is None:
        return register_views(source_number, source.view(), target_number, target.view(), ratio)
    points = register(source_number, source.sidecar, target_number, target.sidecar, ratio)
    return register_frames(points, source.sidecar, target.sidecar) or points
