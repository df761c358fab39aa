"""How sure the place of each member in the scene is, from the pairs that hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse.linalg import splu

from stitch.motions import System, add_edge
from stitch.posegraph import SIGMAS, Solution, normalised
from stitch.register import Edge
from stitch.sim3 import F64, Sim3

_LEAST = 0.001  # of the extent: what no registration is better than


@dataclass(frozen=True, slots=True)
class Certainty:
    """One sigma, against the first member: turn in degrees, place of the middle in the scene's
    unit, scale as a share."""

    rotation_deg: float
    position: float
    scale: float


def sigmas_of(edge: Edge) -> F64:
    """(7,) of a pair between members of unit size: as uncertain as its far end."""
    return SIGMAS * max(edge.far_error, edge.residual, _LEAST) / 0.01


def certainties(
    solution: Solution, extents: Sequence[tuple[F64, float]], edges: Sequence[Edge]
) -> dict[int, Certainty]:
    """By member that is not the first of its part. `edges`: those that hold; where loops disagree
    by more than each is uncertain, all the more (chi square over what is left free)."""
    units = [Sim3(size, np.eye(3), centre) for centre, size in extents]
    found: dict[int, Certainty] = {}
    for group in solution.components:
        inside = [edge for edge in edges if edge.source in group]
        if len(group) < 2:
            continue
        row = {number: k for k, number in enumerate(group[1:])}
        system = System(7 * len(row))
        pose = {i: solution.poses[i] @ units[i] for i in group}
        for edge in inside:
            add_edge(
                system,
                normalised(edge, units),
                (row.get(edge.source, -1), pose[edge.source]),
                (row.get(edge.target, -1), pose[edge.target]),
                sigmas_of(edge),
            )
        hessian, _ = system.normal()
        free = 7 * (len(inside) - len(row))
        excess = max(1.0, system.squares() / free) if free > 0 else 1.0
        solver = splu(hessian)
        for number, k in row.items():
            right = np.zeros((7 * len(row), 7))
            right[7 * k : 7 * k + 7] = np.eye(7)
            variance = excess * np.diag(solver.solve(right)[7 * k : 7 * k + 7])
            sigma = np.sqrt(np.maximum(variance, 0.0))
            found[number] = Certainty(
                rotation_deg=float(np.degrees(np.linalg.norm(sigma[:3]))),
                position=float(np.linalg.norm(sigma[3:6])) * pose[number].scale,
                scale=float(sigma[6]),
            )
    return found
