"""What a forecast (dispatcher.core.forecast) came to. Frozen data; times are wall clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dispatcher.core.model import Job, Stage, Waiting
from dispatcher.core.need import Need
from dispatcher.core.views import GpuView


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """One decision: the job gets a host, or (with `stage`) its next stage starts there."""

    at: float
    job: str
    host: str
    stage: Stage | None = None
    gpu: str | None = None
    mib: int = 0


@dataclass(frozen=True, slots=True)
class Ran:
    """One attempt, from its start (or the snapshot) to its end."""

    job: Job
    gpu: GpuView | None
    need: Need
    begin: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What became of everything. A job that `ended` lacks waits for ever, `left` says why; in a
    run that was broken off, `left` is empty and such a job may yet end."""

    jobs: Mapping[str, Job]  # stitches that were planned on the way included
    began: Mapping[str, float]  # job -> when its next stage was placed
    ended: Mapping[str, float]  # job -> when it settled; settled in the snapshot: its `now`
    waiting: tuple[Waiting, ...]  # after the first decision; as the next two only where traced
    first: int  # how many of the trace are the first decision's
    ran: tuple[Ran, ...]
    left: tuple[Waiting, ...]
    rounds: int
    end: float
