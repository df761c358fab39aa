"""The farm at one moment, whole: what forecasts, plans and explanations start from. Frozen data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dispatcher.core.model import Job
from dispatcher.core.place import Policy
from dispatcher.core.plan import SegmentView, StitchView
from dispatcher.core.views import HostView


@dataclass(frozen=True, slots=True, kw_only=True)
class Underway:
    """How far the running attempt of a job is."""

    elapsed_s: float
    fraction: float | None = None  # of the stage, where it said


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that a forecast starts from. Times are wall-clock Unix seconds."""

    now: float
    jobs: tuple[Job, ...]
    hosts: tuple[HostView, ...]
    policy: Policy
    segments: Mapping[str, tuple[SegmentView, ...]] = field(default_factory=dict)  # by acquisition
    stitches: Mapping[str, tuple[StitchView, ...]] = field(default_factory=dict)  # by acquisition
    underway: Mapping[str, Underway] = field(default_factory=dict)  # by job
