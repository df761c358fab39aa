"""What the shell must do for a job, in the imperative. Each ends in exactly one event."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    job: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferInputs(Effect):
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver(Effect):
    """Bring what the finished stages made from `source` to `host`."""

    host: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimLeftovers(Effect):
    """What was handed over lies verified elsewhere: remove the copy on `host`."""

    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartAttempt(Effect):
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowAttempt(Effect):
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelAttempt(Effect):
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimInputs(Effect):
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimMade(Effect):
    """The job is done, and these kinds of what it made are of no more use on `host`."""

    host: str
    kinds: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectResults(Effect):
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStitches(Effect):
    """The job settled: look whether a stitch of its acquisition can be made. Ends in no event."""

    acquisition: str
