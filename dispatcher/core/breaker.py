"""Circuit breakers: a host or GPU that fails job after job gets no more before a self-test passed.

Pure. closed -> open (too many fast failures) -> testing (one self-test is let in) -> closed, or
open again for longer. Times are wall-clock Unix seconds, because a breaker outlives a dispatcher.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from dispatcher.core.events import AttemptFailed
from dispatcher.core.model import Job, Layer, Reason
from dispatcher.core.retry import layer_of
from dispatcher.core.views import Quarantine

# They tell of the link, of one incident that ended all attempts of a host at the same time, or of
# somebody else's program.
NO_EVIDENCE: Final = frozenset(
    {
        Reason.LEASE_EXPIRED,
        Reason.HOST_REBOOTED,
        Reason.ATTEMPT_VANISHED,
        Reason.HOST_KEY_MISMATCH,
        Reason.HOST_AUTH_FAILED,
        Reason.HOST_NOT_READY,
        Reason.GPU_MEMORY_TAKEN,
    }
)
SUSPICIOUS_LAYERS: Final = frozenset({Layer.HOST, Layer.GPU, Layer.CODE})


class Position(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    TESTING = "testing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds. A breaker opens at `failures` fast ones of at least `jobs` jobs within `window_s`;
    the first wait for the self-test is `cooldown_s`, doubled with every further trip."""

    failures: int = 3
    jobs: int = 2
    window_s: float = 600.0
    fast_s: float = 60.0  # a longer attempt did work: its host is no black hole
    cooldown_s: float = 20.0
    cooldown_most_s: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    job: str
    at: float
    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """`key` is the host's name or the GPU's UUID; `gpu` is None for a host."""

    key: str
    host: str
    gpu: str | None = None
    position: Position = Position.CLOSED
    why: str = ""
    failures: tuple[Failure, ...] = ()
    opened_at: float = 0.0
    until: float = 0.0
    trips: int = 0  # times it opened or stayed open; forgotten after a long quiet time
    failed_tests: int = 0  # in a row


def counts(reason: Reason, ran_s: float, limits: Limits) -> bool:
    """Whether such a failure says something about where it happened."""
    if reason is Reason.GPU_FAULT:
        return True
    return (
        layer_of(reason) in SUSPICIOUS_LAYERS
        and reason not in NO_EVIDENCE
        and ran_s <= limits.fast_s
    )


def subject(job: Job) -> tuple[str, str, str | None]:
    """(key, host, GPU) of what the job's live attempt speaks of. A "CPU-" device is its host."""
    host = job.host or ""
    gpu = job.reservation.gpu if job.reservation is not None else None
    if gpu is None or gpu.startswith("CPU-"):
        return host, host, None
    return gpu, host, gpu


def after_failure(breaker: Breaker, job: Job, event: AttemptFailed, limits: Limits) -> Breaker:
    """`event` counts (see `counts`). A fault that the GPU itself reports opens at once."""
    if breaker.position is not Position.CLOSED:
        return breaker  # an attempt that was alive when it opened
    failure = Failure(job=job.id, at=event.at, line=f"{event.reason}: {event.message}")
    recent = (*(f for f in breaker.failures if f.at > event.at - limits.window_s), failure)
    counted = dataclasses.replace(breaker, failures=recent)
    if event.reason is Reason.GPU_FAULT:
        return _opened(counted, f"the GPU reported a fault ({event.message})", event.at, limits)
    if len(recent) < limits.failures or len({f.job for f in recent}) < limits.jobs:
        return counted
    why = (
        f"{len(recent)} fast failures in {recent[-1].at - recent[0].at:.0f} s, last {event.reason}"
    )
    return _opened(counted, why, event.at, limits)


def _opened(breaker: Breaker, why: str, now: float, limits: Limits) -> Breaker:
    quiet = now - breaker.until > limits.cooldown_most_s
    trips = 1 if quiet else breaker.trips + 1
    cooldown = min(limits.cooldown_most_s, limits.cooldown_s * 2.0 ** min(trips - 1, 30))
    return dataclasses.replace(
        breaker,
        position=Position.OPEN,
        why=why,
        opened_at=now,
        until=now + cooldown,
        trips=trips,
    )


def due(breaker: Breaker, now: float) -> bool:
    """Whether its self-test may run. A clock that was set back never keeps a host away."""
    return breaker.position is Position.OPEN and (now >= breaker.until or now < breaker.opened_at)


def begin_test(breaker: Breaker) -> Breaker:
    return dataclasses.replace(breaker, position=Position.TESTING)


def after_test(breaker: Breaker, ok: bool | None, said: str, now: float, limits: Limits) -> Breaker:
    """`ok` None: the test could not be run, which says nothing. `said` is what was wrong."""
    if breaker.position is not Position.TESTING:
        return breaker
    if ok:
        return dataclasses.replace(
            breaker, position=Position.CLOSED, why="", failures=(), failed_tests=0, until=now
        )
    if ok is None:
        return dataclasses.replace(
            breaker, position=Position.OPEN, opened_at=now, until=now + limits.cooldown_s
        )
    opened = _opened(breaker, f"its self-test failed: {said}", now, limits)
    return dataclasses.replace(opened, failed_tests=breaker.failed_tests + 1)


def interrupted(breaker: Breaker) -> Breaker:
    """After a restart of the dispatcher: a test that ran then is run again at once."""
    if breaker.position is not Position.TESTING:
        return breaker
    return dataclasses.replace(breaker, position=Position.OPEN, until=breaker.opened_at)


def quarantine(breaker: Breaker | None) -> Quarantine | None:
    """What placement is told; None: nothing is held against it."""
    if breaker is None or breaker.position is Position.CLOSED:
        return None
    when = (
        "a self-test runs now"
        if breaker.position is Position.TESTING
        else f"self-test at {_clock(breaker.until)}"
    )
    return Quarantine(
        line=(
            f"quarantined since {_clock(breaker.opened_at)}: {breaker.why}; {when} "
            f"(cosma worker resume {breaker.host} lifts it)"
        ),
        failed_test=breaker.failed_tests > 0,
    )


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%SZ")
