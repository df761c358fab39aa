"""What the logs of both sides say after a drill: data only. Times are CLOCK_BOOTTIME seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Key = tuple[str, int]  # (job, attempt)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """A job in the dispatcher's database."""

    id: str
    kind: str
    state: str
    reason: str | None = None
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """An attempt in the dispatcher's database; `exit` is the host's exit record, if it came."""

    job: str
    attempt: int
    stage: str
    host: str
    state: str
    reason: str | None = None
    exit: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """An event in the dispatcher's database; `source` is dispatcher or agent."""

    id: int
    kind: str
    job: str | None
    attempt: int | None
    host: str | None
    source: str
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPiece:
    job: str
    attempt: int
    position: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAttempt:
    """An attempt directory on a host. `events` are the raw bytes of events.jsonl."""

    host: str
    job: str
    attempt: int
    events: bytes
    log: bytes
    exit: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None  # what the stage says of itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One process of a stage, from its own run log: when it began, when it was last alive."""

    host: str
    job: str
    attempt: int
    stage: str
    pid: int
    began: float
    alive_until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """`expected_held`: jobs named in advance as impossible. `lost_sources`: footage that is not
    what it was before the drill."""

    jobs: tuple[JobRow, ...]
    attempts: tuple[AttemptRow, ...] = ()
    reservations: tuple[Key, ...] = ()
    events: tuple[EventRow, ...] = ()
    logs: tuple[LogPiece, ...] = ()
    host_attempts: tuple[HostAttempt, ...] = ()
    runs: tuple[Run, ...] = ()
    processes_left: tuple[str, ...] = ()
    lost_sources: tuple[str, ...] = ()
    expected_held: frozenset[str] = frozenset()
