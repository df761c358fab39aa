"""From exit records to events: success only with a result that says so."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dispatcher.core.events import AttemptFailed, AttemptSucceeded, Event
from dispatcher.core.model import Layer, Reason
from dispatcher.core.retry import RULES
from dispatcher.outcome import event_of
from worker_agent.protocol import (
    AttemptState,
    AttemptStatus,
    ExitRecord,
    FailureCode,
    StageOutcome,
)


def _record(**changes: Any) -> ExitRecord:
    record = ExitRecord(
        attempt=3,
        stage="Training",
        returncode=0,
        signal=None,
        cause="exited",
        outcome=StageOutcome(ok=True, metrics={"psnr": 25.0}),
        started_at=1.0,
        ended_at=2.0,
        wall_s=1.0,
        cpu_s=1.0,
        peak_rss_mib=10.0,
        peak_vram_mib=None,
        events_bytes=0,
        log_bytes=0,
        boot_id="b",
    )
    return dataclasses.replace(record, **changes)


def _event(record: ExitRecord | None, *, rebooted: bool = False) -> Event:
    state = AttemptState.VANISHED if record is None else AttemptState.FINISHED
    status = AttemptStatus(run_dir="/w/a/j", attempt=3, state=state, exit=record, rebooted=rebooted)
    return event_of(status, host="gpu-a", stage="Training", at=5.0, stimulus="7")


def test_a_good_result_is_success_with_its_metrics() -> None:
    event = _event(_record())
    assert event == AttemptSucceeded(at=5.0, stimulus="7", attempt=3, metrics={"psnr": 25.0})


@pytest.mark.parametrize("code", FailureCode)
def test_every_failure_code_has_a_reason_and_a_rule(code: FailureCode) -> None:
    outcome = StageOutcome(ok=False, reason=code, message="m", advice="a")
    event = _event(_record(returncode=1, outcome=outcome))
    assert isinstance(event, AttemptFailed)
    assert event.reason.value == code.value
    assert event.reason in RULES


@pytest.mark.parametrize(
    ("changes", "reason", "says"),
    [
        ({"cause": "lease_expired", "signal": 15}, Reason.LEASE_EXPIRED, "renewal"),
        ({"cause": "timeout", "signal": 9}, Reason.STAGE_TIMEOUT, "time limit"),
        ({"cause": "signalled", "signal": 11}, Reason.STAGE_SIGNALLED, "SIGSEGV"),
        ({"cause": "signalled", "signal": 40}, Reason.STAGE_SIGNALLED, "signal 40"),
        ({"cause": "oom_killed", "signal": 9}, Reason.OUT_OF_MEMORY, "memory"),
        ({"cause": "exited", "returncode": 0}, Reason.STAGE_CRASHED, "no result"),
    ],
)
def test_no_result_is_never_success(changes: dict[str, Any], reason: Reason, says: str) -> None:
    event = _event(_record(outcome=None, **changes))
    assert isinstance(event, AttemptFailed)
    assert event.reason is reason
    assert says in event.message
    assert "gpu-a" in event.message


@pytest.mark.parametrize("cause", ["lease_expired", "cancelled", "timeout", "oom_killed"])
def test_a_stage_that_was_ended_does_not_blame_its_data(cause: str) -> None:
    """The decoder dies with its stage, and the stage still says what it believes to be wrong."""
    outcome = StageOutcome(ok=False, reason=FailureCode.DECODE_FAILED, message="ffmpeg died")
    event = _event(_record(cause=cause, signal=15, outcome=outcome))
    assert isinstance(event, AttemptFailed)
    assert RULES[event.reason].layer is not Layer.DATA
    done = _event(_record(cause=cause, signal=15))
    assert isinstance(done, AttemptSucceeded), "what was finished before is never run again"


def test_a_reboot_is_told_apart_from_processes_that_vanished() -> None:
    vanished, rebooted = _event(None), _event(None, rebooted=True)
    assert isinstance(vanished, AttemptFailed)
    assert isinstance(rebooted, AttemptFailed)
    assert vanished.reason is Reason.ATTEMPT_VANISHED
    assert rebooted.reason is Reason.HOST_REBOOTED


def test_a_running_attempt_has_no_outcome() -> None:
    status = AttemptStatus(run_dir="/w", attempt=1, state=AttemptState.RUNNING)
    with pytest.raises(ValueError, match="still runs"):
        event_of(status, host="h", stage="Training", at=0.0, stimulus="")
