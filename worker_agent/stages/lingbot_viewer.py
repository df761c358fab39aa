"""Stands in for the viewer of lingbot-map's demo.py, which writes no file: it writes the PLY.

Run by that program's own Python, with nothing of cosma beside it:
`python lingbot_viewer.py DEMO OUTPUT ARGUMENTS...` runs DEMO with ARGUMENTS, and when it opens its
viewer, the points that this would show go to OUTPUT and the program ends.
"""

import os
import runpy
import sys
import types
from typing import Any


def write_points(path: str, shown: dict[str, Any], least: float, every: int) -> int:
    """Every n-th of the points whose confidence exceeds `least`, frame by frame, as a binary PLY;
    how many. `shown` is what the viewer gets: depth (S, H, W, 1), depth_conf (S, H, W),
    extrinsic (S, 3, 4), intrinsic (S, 3, 3), images (S, 3, H, W) in [0, 1]."""
    import numpy as np
    from lingbot_map.utils.geometry import unproject_depth_map_to_point_map

    row = np.dtype(
        [(axis, "<f4") for axis in "xyz"] + [(c, "u1") for c in ("red", "green", "blue")]
    )
    parts = []
    for at in range(len(shown["depth"])):
        one = slice(at, at + 1)
        # The program's own function, so that poses mean here what they mean to it.
        points = unproject_depth_map_to_point_map(
            shown["depth"][one], shown["extrinsic"][one], shown["intrinsic"][one]
        )[0].reshape(-1, 3)
        colours = np.asarray(shown["images"][at]).transpose(1, 2, 0).reshape(-1, 3)
        sure = np.isfinite(points).all(axis=1)
        if shown.get("depth_conf") is not None:
            sure &= np.asarray(shown["depth_conf"][at]).reshape(-1) > least
        kept = np.flatnonzero(sure)[:: max(1, every)]
        part = np.empty(len(kept), row)
        for place, axis in enumerate("xyz"):
            part[axis] = points[kept, place]
        for place, name in enumerate(("red", "green", "blue")):
            part[name] = (255.0 * colours[kept, place]).clip(0, 255).round()
        parts.append(part)
    count = sum(map(len, parts))
    kinds = ["float"] * 3 + ["uchar"] * 3
    lines = [f"property {kind} {name}" for kind, name in zip(kinds, row.names or ())]  # noqa: B905
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {count}", *lines]
    with open(f"{path}.tmp", "wb") as stream:  # noqa: PTH123
        stream.write(("\n".join([*header, "end_header"]) + "\n").encode())
        for part in parts:
            stream.write(part.tobytes())
    os.replace(f"{path}.tmp", path)  # noqa: PTH105
    return count


def stand_in(output: str) -> types.ModuleType:
    """A module `lingbot_map.vis` whose viewer writes `output`."""

    class PointCloudViewer:
        def __init__(
            self,
            pred_dict: dict[str, Any],
            vis_threshold: float = 1.0,
            downsample_factor: int = 10,
            **_: Any,
        ) -> None:
            self._wanted = pred_dict, vis_threshold, downsample_factor

        def run(self) -> None:
            print(f"{write_points(output, *self._wanted)} points written", flush=True)

    module = types.ModuleType("lingbot_map.vis")
    module.PointCloudViewer = PointCloudViewer  # type: ignore[attr-defined]
    return module


if __name__ == "__main__":
    demo, output, *rest = sys.argv[1:]
    sys.modules["lingbot_map.vis"] = stand_in(output)
    sys.argv = [demo, *rest]
    sys.path[0] = os.path.dirname(os.path.abspath(demo))  # noqa: PTH100, PTH120
    runpy.run_path(demo, run_name="__main__")
