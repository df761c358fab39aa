"""The farm at one moment, whole: what forecasts, plans and explanations start from. Frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dispatcher.core.model import Job
from dispatcher.core.place import Policy
from dispatcher.core.plan import SegmentView, Sooner, StitchView
from dispatcher.core.views import HostView

OVERDUE = 0.05  # a stage past its time is taken to need this share of what it took
TELLING = 0.05  # progress below this share says nothing about the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Underway:
    """How far the running attempt of a job is."""

    elapsed_s: float
    fraction: float | None = None  # of the stage, where it said

    def left_s(self, drawn: float, likely: float) -> float:
        """Seconds that the stage still takes: by its own progress where that tells, else by what
        such a stage takes in all (`drawn` in this future, `likely` in the likely one)."""
        if self.fraction is not None and self.fraction >= TELLING:
            rest = self.elapsed_s * (1.0 - min(1.0, self.fraction)) / self.fraction
            return rest * drawn / likely if likely > 0 else rest
        return max(drawn - self.elapsed_s, OVERDUE * self.elapsed_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that a forecast starts from. Times are wall-clock Unix seconds."""

    now: float
    jobs: tuple[Job, ...]
    hosts: tuple[HostView, ...]
    policy: Policy
    segments: Mapping[str, tuple[SegmentView, ...]] = field(default_factory=dict)  # by acquisition
    stitches: Mapping[str, tuple[StitchView, ...]] = field(default_factory=dict)  # by acquisition
    sooner: Mapping[str, Sooner] = field(default_factory=dict)  # by acquisition
    underway: Mapping[str, Underway] = field(default_factory=dict)  # by job
