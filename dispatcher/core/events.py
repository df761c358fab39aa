"""What happens to a job, in the past tense: facts. Each carries only what the machine needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dispatcher.core.model import Layer, Reason, Reservation, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base. `at` is wall-clock Unix seconds; `stimulus` is the id of the event that caused it."""

    at: float
    stimulus: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAssigned(Event):
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InputsReady(Event):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOver(Event):
    """What the finished stages made lies verified on the new host; the job goes on at `stage`."""

    stage: Stage
    source: str
    route: str  # "direct": from host to host; "relayed": by way of here; "there": nothing to bring
    files: int = 0
    bytes: int = 0
    seconds: float = 0.0
    note: str = ""  # why not direct, or what could not be had


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoffAbandoned(Event):
    """It cannot be had, or is not worth bringing: the job starts from its first stage."""

    source: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftoversReclaimed(Event):
    host: str
    removed_bytes: int
    freed_bytes: int  # blocks that they took


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlaced(Event):
    reservation: Reservation  # its attempt is job.attempt + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStarted(Event):
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSucceeded(Event):
    attempt: int
    metrics: dict[str, Any] = field(default_factory=dict)
    resumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed(Event):
    """The stage ended badly, or was proven dead (vanished, rebooted, lease run out)."""

    attempt: int
    reason: Reason
    message: str
    advice: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    blame: Layer | None = None  # HOST or GPU: the place is suspect, the job's budget stays
    looked: bool = False  # at the GPU, for whose memory it was that ran out


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferFailed(Event):
    """Inputs could not be brought, or results could not be collected."""

    reason: Reason
    message: str
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputsReclaimed(Event):
    host: str
    removed_bytes: int
    freed_bytes: int  # blocks that they took


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeReclaimed(Event):
    """These kinds of what the job made no longer lie on `host`."""

    host: str
    kinds: tuple[str, ...]
    removed_bytes: int
    freed_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InputsKept(Event):
    """Source videos stay on `host`, by the policy for them."""

    host: str
    rule: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReclaimFailed(Event):
    """Inputs or leftovers still lie on `host`; tried again at the next start."""

    host: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultsCollected(Event):
    artifacts: int = 0
    bytes: int = 0
    left_on: tuple[str, ...] = ()  # other hosts with something of the job, now of no more use


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReduced(Event):
    """No host can hold the job by its plan: from now on it trains by one that is `shrink` steps
    smaller than what was asked for, and its stages take every `stride`-th frame."""

    shrink: int
    stride: int
    message: str  # what is needed, and what the hosts have


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested(Event):
    by: str = "operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelConfirmed(Event):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRequested(Event):
    """The operator says: try again (from held, error or cancelled), optionally from a stage."""

    by: str = "operator"
    stage: Stage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorityChanged(Event):
    priority: int
