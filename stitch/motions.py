"""Small motions of many members at once: the least-squares system of a graph of similarities.

A motion is seven numbers in a member's own unit frame: a turn (rotation vector), a shift, and the
growth of the logarithm of its scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix, csc_matrix
from scipy.sparse.linalg import splu
from scipy.spatial.transform import Rotation

from stitch.posegraph import SIGMAS
from stitch.sim3 import F64, Sim3

_DAMPING = 1e-6


class System:
    """Least squares, row blocks at a time."""

    def __init__(self, unknowns: int) -> None:
        self._unknowns = unknowns
        self._rows = 0
        self._parts: list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], F64]] = []
        self._residuals: list[F64] = []

    def add(self, residual: F64, blocks: Sequence[tuple[int, F64]]) -> None:
        """Rows by members, each (number, its block (rows,7)); a number below 0 stands still."""
        for number, block in blocks:
            if number < 0:
                continue
            rows, columns = np.indices(block.shape)
            self._parts.append(
                (rows.ravel() + self._rows, columns.ravel() + 7 * number, block.ravel())
            )
        self._rows += len(residual)
        self._residuals.append(residual)

    def squares(self) -> float:
        return float(sum(float(part @ part) for part in self._residuals))

    def normal(self) -> tuple[csc_matrix, csc_matrix]:
        """J^T J and J."""
        rows, columns, values = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        shape = (self._rows, self._unknowns)
        jacobian = coo_matrix((values, (rows, columns)), shape=shape).tocsc()
        return (jacobian.T @ jacobian).tocsc(), jacobian

    def solved(self) -> F64:
        """The step that lowers the sum of squares most; what nothing holds stays where it is."""
        hessian, jacobian = self.normal()
        damping = coo_matrix(
            (np.full(self._unknowns, _DAMPING), (range(self._unknowns),) * 2)
        ).tocsc()
        right = -jacobian.T @ np.concatenate(self._residuals)
        step: F64 = splu((hessian + damping).tocsc()).solve(right)
        return step


def add_edge(
    system: System,
    relative: Sim3,
    source: tuple[int, Sim3],
    target: tuple[int, Sim3],
    sigmas: F64 = SIGMAS,
) -> None:
    """What members (number, pose) differ from `relative`, source to target; all of unit size."""
    error = relative.inverse() @ target[1].inverse() @ source[1]
    turn = Rotation.from_matrix(error.rotation).as_rotvec()
    residual = np.concatenate([turn, error.translation, [np.log(error.scale)]])
    away = -adjoint(relative.inverse())
    blocks = [(source[0], np.eye(7) / sigmas[:, None]), (target[0], away / sigmas[:, None])]
    system.add(residual / sigmas, blocks)


def cross(v: F64) -> F64:
    """(3,3) matrix of the cross product with `v`."""
    return np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])


def small(step: F64) -> Sim3:
    """A motion (7,) as a transform."""
    return Sim3(float(np.exp(step[6])), Rotation.from_rotvec(step[:3]).as_matrix(), step[3:6])


def adjoint(pose: Sim3) -> F64:
    """(7,7): the small motion before `pose` that is `motion` after it; first order."""
    s, r, t = pose.scale, pose.rotation, pose.translation
    made = np.zeros((7, 7))
    # pose o exp(x) o pose^-1: turn by r, grow alike, shift by what the far origin sees.
    made[:3, :3] = r
    made[3:6, :3] = cross(t) @ r
    made[3:6, 3:6] = s * r
    made[3:6, 6] = -t
    made[6, 6] = 1.0
    return made
