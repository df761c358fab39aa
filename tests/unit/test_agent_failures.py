from __future__ import annotations

import errno
import sqlite3

import pytest

from worker_agent.protocol import FailureCode
from worker_agent.stages.api import StageFailure
from worker_agent.stages.failures import outcome_of


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), FailureCode.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), FailureCode.OUT_OF_MEMORY),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), FailureCode.DISK_FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), FailureCode.DISK_FULL),
        (sqlite3.OperationalError("database or disk is full"), FailureCode.DISK_FULL),
        (OutOfMemoryError("tried to allocate"), FailureCode.GPU_OUT_OF_MEMORY),
        (RuntimeError("CUDA error: out of memory"), FailureCode.GPU_OUT_OF_MEMORY),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), FailureCode.GPU_FAULT),
        (ModuleNotFoundError("x", name="gsplat"), FailureCode.TOOL_MISSING),
        (ValueError("bad"), FailureCode.STAGE_CRASHED),
        (PermissionError(errno.EACCES, "Permission denied"), FailureCode.STAGE_CRASHED),
    ],
)
def test_code_of_an_exception(error: Exception, reason: FailureCode) -> None:
    outcome = outcome_of(error, "Training")
    assert not outcome.ok
    assert outcome.reason is reason
    assert outcome.advice
    assert "\n" not in outcome.message


def test_the_cause_of_an_exception_counts() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("cannot write the model") from error
    except RuntimeError as error:
        assert outcome_of(error, "Training").reason is FailureCode.DISK_FULL


def test_verdict_of_the_stage_is_kept_whole() -> None:
    verdict = StageFailure(
        FailureCode.NO_PARALLAX, "stood\nstill", advice="move", evidence={"baseline": 0.1}
    )
    outcome = outcome_of(verdict, "ColmapReconstruction")
    assert outcome.reason is FailureCode.NO_PARALLAX
    assert outcome.message == "stood still"
    assert outcome.advice == "move"
    assert outcome.evidence == {"baseline": 0.1}


def test_crash_tells_its_last_line_only() -> None:
    outcome = outcome_of(ValueError("a\nb " + "x" * 1000), "Training")
    assert outcome.message.startswith("Training crashed: ValueError: a b x")
    assert len(outcome.message) <= 500
