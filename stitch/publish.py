"""The report of a stitch: `stitch.json`, JSON scalars and lists only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stitch.certainty import Certainty
from stitch.earlier_poses import Earlier
from stitch.harmonise import Tint
from stitch.priors import Placed, World
from stitch.register import Edge
from stitch.scale import Measure, scale_entry
from stitch.score import Verdict
from stitch.seams import Seam
from stitch.sim3 import Sim3
from stitch.territory import Member

REPORT_VERSION = 1


def member_entry(
    name: str,
    auv: str,
    pose: Sim3,
    before: int,
    kept: int,
    *,
    contents: str,
    stands: bool = False,
    floating: int = 0,
    sure: Certainty | None = None,
    tint: Tint | None = None,
) -> dict[str, Any]:
    """A member of the scene; scale, rotation (3 rows) and translation take it to the scene.

    `contents`: SHA-256 of its sidecar, or of its PLY. `stands`: where the version before had it.
    `uncertainty` is one sigma against the first member of its part, of which there is none:
    degrees, scene's unit, a share of the scale. `tint`: gain and offset of its colours, RGB in
    0..1.
    """
    return {
        "name": name,
        "auv": auv,
        "contents": contents,
        "stands": stands,
        "scale": pose.scale,
        "rotation": pose.rotation.tolist(),
        "translation": pose.translation.tolist(),
        "uncertainty": sure
        and {
            "rotation_deg": round(sure.rotation_deg, 5),
            "position": round(sure.position, 6),
            "scale": round(sure.scale, 6),
        },
        "gaussians_before": before,
        "gaussians_kept": kept,
        "floaters": floating,
        "tint": tint
        and {"gain": np.round(tint.gain, 4).tolist(), "offset": np.round(tint.offset, 4).tolist()},
    }


def earlier_parts(report: Mapping[str, Any]) -> list[Earlier]:
    """The scene of a report and its parts, as the next version takes them up. Raises KeyError,
    TypeError, ValueError for what is no such report."""
    found = []
    for part in (report, *report["parts"]):
        members = {str(entry["name"]): entry for entry in part["members"]}
        poses = {
            str(entry["contents"]): Sim3(
                float(entry["scale"]), np.array(entry["rotation"]), np.array(entry["translation"])
            )
            for entry in members.values()
        }
        found.append(Earlier(str(members[part["reference"]]["contents"]), poses))
    return found


def world_entry(
    placed: Placed,
    sized: World | None,
    origin: Sequence[float] | None,
    positions: int,
    measures: Sequence[Measure],
) -> dict[str, Any]:
    """Where the scene belongs and how large it is, by which source. `georeference` takes the scene
    to metres east, north, up of `origin` (latitude, longitude, altitude), with the scale that is
    believed (`sized`)."""
    world = placed.world
    metric = world is not None and world.metric
    georeference = None
    if sized is not None and metric:
        georeference = {
            "origin": list(origin or ()),
            "scale": sized.sim3.scale,
            "rotation": sized.sim3.rotation.tolist(),
            "translation": sized.sim3.translation.tolist(),
        }
    return {
        "scale": {
            **scale_entry(measures),
            "positions": positions if metric else 0,
            "residual_m": _rounded(placed.position_residual_m, 4),
        },
        "upright": world is not None,
        "gravity_residual_deg": _rounded(placed.gravity_residual_deg, 3),
        "georeference": georeference,
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def edge_entry(edge: Edge, names: Sequence[str], verdict: Verdict) -> dict[str, Any]:
    """One pair with its evidence."""
    return {
        "source": names[edge.source],
        "target": names[edge.target],
        "method": edge.method,
        "frames": edge.frames,
        "matches": edge.matches,
        "inliers": edge.inliers,
        "share": round(edge.share, 4),
        "hull_share": round(edge.hull_share, 4),
        "agreement": round(edge.agreement, 4),
        "bend": round(edge.bend, 4),
        "far_error": round(edge.far_error, 5),
        "residual_depths": round(edge.residual, 6),
        "accepted": verdict.accepted,
        "reason": verdict.reason,
        "doubt": verdict.doubt,
        "bent": verdict.bent,
        "undecided": verdict.undecided,
    }


def seam_entry(seam: Seam, members: Sequence[Member]) -> dict[str, Any]:
    """Where two members meet; `offset` is in the scene's unit."""
    return {
        "first": members[seam.first].name,
        "second": members[seam.second].name,
        "cells": seam.cells,
        "density": round(seam.density, 4),
        "offset": seam.offset,
        "colour_step": round(seam.colour_step, 4),
    }


def stitch_report(
    *,
    level: str,
    name: str,
    reference: str,
    members: Sequence[dict[str, Any]],
    edges: Sequence[dict[str, Any]],
    left_out: Sequence[dict[str, Any]],
    seams: Sequence[dict[str, Any]],
    parts: Sequence[dict[str, Any]],
    gaussians: int,
    **more: Any,
) -> dict[str, Any]:
    """The whole report. `reference`: the member whose frame is that of the scene."""
    return {
        "version": REPORT_VERSION,
        "level": level,
        "name": name,
        "reference": reference,
        "members": list(members),
        "edges": list(edges),
        "left_out": list(left_out),
        "seams": list(seams),
        "parts": list(parts),  # what hangs together apart from the scene, each in its own frame
        "gaussians": gaussians,
        **more,
    }
