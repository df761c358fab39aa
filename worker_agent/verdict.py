"""What really ended a stage, where its own word or its exit status only shows the symptom."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from worker_agent.messages import FailureCode, StageOutcome

# What a stage says when a program it called was killed under it, or its GPU gave nonsense.
_SYMPTOMS = frozenset(
    {FailureCode.STAGE_CRASHED, FailureCode.STAGE_SIGNALLED, FailureCode.DECODE_FAILED}
)
_GPU_SYMPTOMS = _SYMPTOMS | {FailureCode.TRAINING_DIVERGED, FailureCode.GPU_OUT_OF_MEMORY}


def judge(
    stage: str,
    cause: str,
    number: int | None,
    outcome: StageOutcome | None,
    *,
    oom_kills: Mapping[str, int],
    gpu_faults: Mapping[str, Any],
) -> tuple[str, StageOutcome | None]:
    """(cause, outcome) of an attempt; a success and what we ended ourselves stay as they are.

    `oom_kills` and `gpu_faults` are what was counted while it ran (oom.since, FaultWatch.faults).
    """
    if cause not in ("exited", "signalled") or (outcome is not None and outcome.ok):
        return cause, outcome
    said = outcome.reason if outcome is not None else None
    if gpu_faults and (said is None or said in _GPU_SYMPTOMS):
        evidence = {"gpu": dict(gpu_faults), "said": said}
        return cause, _outcome(
            outcome,
            FailureCode.GPU_FAULT,
            f"{stage}: the GPU reports a fault: {_listed(gpu_faults)}",
            "look at nvidia-smi -q and the kernel log of this host",
            evidence,
        )
    killed = cause == "signalled" and number == signal.SIGKILL
    if oom_kills and (killed if said is None else said in _SYMPTOMS):
        evidence = {"oom_kills": dict(oom_kills), "said": said}
        return "oom_killed" if killed else cause, _outcome(
            outcome,
            FailureCode.OUT_OF_MEMORY,
            f"{stage}: the kernel killed it because memory ran out ({_listed(oom_kills)})",
            "lower frames.width or sfm.max_features, or use a host with more memory",
            evidence,
        )
    return cause, outcome


def _outcome(
    outcome: StageOutcome | None,
    reason: FailureCode,
    message: str,
    advice: str,
    evidence: dict[str, Any],
) -> StageOutcome:
    base = outcome if outcome is not None else StageOutcome(ok=False)
    return replace(
        base,
        reason=reason,
        message=message,
        advice=advice,
        evidence={**base.evidence, **evidence},
    )


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())
