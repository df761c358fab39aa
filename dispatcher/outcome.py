"""From an agent's exit record to the event the state machine understands. Pure."""

from __future__ import annotations

import signal

from dispatcher.core.events import AttemptFailed, AttemptSucceeded, Event
from dispatcher.core.model import Reason
from worker_agent.protocol import AttemptState, AttemptStatus, ExitRecord

_CAUSES: dict[str, tuple[Reason, str]] = {
    "lease_expired": (
        Reason.LEASE_EXPIRED,
        "the host ended it: no renewal from the dispatcher within the lease",
    ),
    "cancelled": (Reason.CANCELLED, "it was cancelled on the host"),
    "terminated": (Reason.ATTEMPT_VANISHED, "its supervisor was told to end, as at a shutdown"),
    "timeout": (Reason.STAGE_TIMEOUT, "it ran past its time limit"),
    "oom_killed": (
        Reason.OUT_OF_MEMORY,
        "the kernel ended it because the host's memory was used up",
    ),
    "spawn_failed": (Reason.TOOL_MISSING, "the stage's interpreter could not be started"),
}


def event_of(status: AttemptStatus, *, host: str, stage: str, at: float, stimulus: str) -> Event:
    """The event for an attempt that is over; `status.state` is never RUNNING here.

    Raises ValueError for a status of an attempt that still runs.
    """
    if status.state is AttemptState.RUNNING:
        raise ValueError(f"attempt {status.attempt} of {status.run_dir} still runs")
    if status.exit is None:
        return _lost(status, host=host, stage=stage, at=at, stimulus=stimulus)
    record = status.exit
    outcome = record.outcome
    if outcome is not None and outcome.ok:
        return AttemptSucceeded(
            at=at,
            stimulus=stimulus,
            attempt=record.attempt,
            metrics=dict(outcome.metrics),
            resumed=outcome.resumed,
        )
    # A stage that is being ended may still blame its data: a decoder that was killed with it, say.
    if outcome is not None and outcome.reason is not None and record.cause not in _CAUSES:
        return AttemptFailed(
            at=at,
            stimulus=stimulus,
            attempt=record.attempt,
            reason=Reason(outcome.reason),
            message=outcome.message,
            advice=outcome.advice,
            evidence=dict(outcome.evidence),
        )
    reason, why = _cause(record)
    return AttemptFailed(
        at=at,
        stimulus=stimulus,
        attempt=record.attempt,
        reason=reason,
        message=f"{stage} on {host}: {why}",
        evidence={"returncode": record.returncode, "signal": record.signal},
    )


def _cause(record: ExitRecord) -> tuple[Reason, str]:
    if record.cause in _CAUSES:
        return _CAUSES[record.cause]
    if record.signal is not None:
        return (
            Reason.STAGE_SIGNALLED,
            f"ended by {_signal_name(record.signal)} after {record.wall_s:.0f} s",
        )
    return Reason.STAGE_CRASHED, f"ended with exit code {record.returncode} and no result"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # the real-time signals have no names
        return f"signal {number}"


def _lost(
    status: AttemptStatus, *, host: str, stage: str, at: float, stimulus: str
) -> AttemptFailed:
    if status.rebooted:
        reason, why = Reason.HOST_REBOOTED, "the host was rebooted meanwhile"
    elif status.state is AttemptState.VANISHED:
        reason, why = Reason.ATTEMPT_VANISHED, "its processes are gone and left no exit record"
    else:
        reason, why = Reason.ATTEMPT_VANISHED, "the host knows nothing of it any more"
    return AttemptFailed(
        at=at,
        stimulus=stimulus,
        attempt=status.attempt,
        reason=reason,
        message=f"{stage} on {host}: {why}",
    )
