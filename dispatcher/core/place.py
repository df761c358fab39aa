"""Jobs x hosts -> who goes where now, and a reason with numbers for every job left out.

Pure and deterministic: the same snapshot gives the same decision. This is a board that is used
once (dispatcher.core.board).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dispatcher.core.board import Board, Placement
from dispatcher.core.model import Job, Waiting
from dispatcher.core.need import GPU_STAGES
from dispatcher.core.policy import SLOT_OF, Policy
from dispatcher.core.views import HostView

__all__ = ["GPU_STAGES", "SLOT_OF", "Explained", "Placement", "Policy", "place"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained(Placement):
    """With why each job that was left out waits, by id."""

    waiting: tuple[Waiting, ...]


def place(jobs: Iterable[Job], hosts: Iterable[HostView], policy: Policy, now: float) -> Explained:
    """Decide for every job at Step.PLACE; `now` is wall clock, as Job.not_before is."""
    board = Board(policy)
    for host in hosts:
        board.put_host(host)
    for job in jobs:
        board.put_job(job)
    decided = board.decide(now)
    return Explained(
        assignments=decided.assignments, stages=decided.stages, waiting=board.waiting()
    )
