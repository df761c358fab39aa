"""What a person looks at of a finished scene: orthomosaic, height map, graph, tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stitch.above import Above, above
from stitch.durable import replacing
from stitch.graph_drawing import draw_graph
from stitch.merge import scene_depth
from stitch.pictures import NO_DATA, write_geotiff, write_png, write_world_file
from stitch.priors import World
from stitch.sim3 import F64
from stitch.territory import Member
from worker_agent.stages.sfm_georeference import to_enu
from worker_agent.stages.stitch_world import Origin, upright

Made = list[tuple[str, Path]]  # kind of artifact, file


def draw_maps(
    ply: Path, members: Sequence[Member], world: World | None, origin: Origin | None
) -> tuple[dict[str, Any] | None, Made]:
    """Orthomosaic and height map beside `ply`, and what the report says of them."""
    frame = upright(members, world)
    seen = above(ply, frame, frame.scale * scene_depth(members))
    if seen is None:
        return None, []
    ortho, heights = ply.with_name("orthomosaic.png"), ply.with_name("height.png")
    low, step = _write_heights(heights, seen)
    alpha = np.where(seen.known, 255, 0).astype(np.uint8)
    write_png(ortho, np.concatenate([seen.rgb, alpha[..., None]], axis=2))
    made = [("orthomosaic", ortho), ("height_map", heights)]
    for kind in (ortho, heights):
        write_world_file(kind.with_suffix(".pgw"), seen.west, seen.north, seen.pixel)
        made.append(("world_file", kind.with_suffix(".pgw")))
    metric = world is not None and world.metric
    if metric and origin is not None:
        made += _write_geotiffs(ply, seen, alpha, origin)
    rows, columns = seen.known.shape
    entry = {
        "unit": "m" if metric else "scene",
        "pixel": seen.pixel,
        "columns": columns,
        "rows": rows,
        "covered": round(float(seen.known.mean()), 4),
        "height_low": low,
        "height_step": step,
        "files": [path.name for _, path in made],
    }
    return entry, made


def _write_heights(path: Path, seen: Above) -> tuple[float, float]:
    """16 bit: 0 is unknown, 1 the lowest. The height of that, and of one step."""
    low, high = float(np.nanmin(seen.height)), float(np.nanmax(seen.height))
    step = max((high - low) / 65_534, 1e-9)
    steps = np.where(seen.known, 1 + np.round((seen.height - low) / step), 0)
    write_png(path, steps.astype(np.uint16))
    return low, step


def _write_geotiffs(ply: Path, seen: Above, alpha: Any, origin: Origin) -> Made:
    latitude, longitude, altitude = origin
    # A metre in degrees there, by the same formula that made metres of them.
    delta = 1e-4
    (behind, ahead), _ = to_enu(
        [(latitude - delta, longitude - delta, 0.0), (latitude + delta, longitude + delta, 0.0)]
    )
    east, north = (float(v) for v in (ahead - behind)[:2] / (2 * delta))
    corner = longitude + seen.west / east, latitude + seen.north / north
    size = seen.pixel / east, seen.pixel / north
    ortho, heights = ply.with_name("orthomosaic.tif"), ply.with_name("height.tif")
    write_geotiff(ortho, np.concatenate([seen.rgb, alpha[..., None]], axis=2), *corner, size)
    known = np.where(seen.known, seen.height + altitude, NO_DATA).astype(np.float32)
    write_geotiff(heights, known, *corner, size)
    return [("orthomosaic", ortho), ("height_map", heights)]


def draw_pairs(
    path: Path,
    members: Sequence[Member],
    world: World | None,
    everyone: Sequence[str],
    edges: Sequence[dict[str, Any]],
) -> None:
    """The graph of all pairs as SVG."""
    frame = upright(members, world)
    places: dict[str, F64] = {
        m.name: frame.apply(m.pose.apply(m.sidecar.extent()[0][None]))[0, :2] for m in members
    }
    apart = [name for name in everyone if name not in places]
    with replacing(path) as stream:
        stream.write(draw_graph(places, apart, edges).encode())
