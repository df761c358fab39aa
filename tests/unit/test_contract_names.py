"""Names that two sides spell on their own must agree."""

from __future__ import annotations

from dispatcher.core.lease import STAGE_LEASE_S
from dispatcher.core.model import PROGRESS, RECONSTRUCT_STAGES, STITCH_STAGES, Reason
from dispatcher.core.reconcile import Shown
from dispatcher.core.retry import RULES
from worker_agent.protocol import AttemptState, FailureCode
from worker_agent.stages.registry import ORDER, STAGES


def test_every_failure_code_of_the_agent_is_a_reason() -> None:
    reasons = {(reason.name, reason.value) for reason in Reason}
    assert {(code.name, code.value) for code in FailureCode} <= reasons


def test_what_an_attempt_that_began_shows_is_spelled_alike() -> None:
    began = {state.value for state in AttemptState} - {AttemptState.NEVER_STARTED.value}
    assert {shown.value for shown in Shown} == began


def test_every_reason_has_a_rule() -> None:
    assert set(RULES) == set(Reason)


def test_dispatcher_and_agent_know_the_same_stages_in_the_same_order() -> None:
    assert tuple(stage.value for stage in RECONSTRUCT_STAGES) == ORDER
    every = {stage.value for stage in (*RECONSTRUCT_STAGES, *STITCH_STAGES)}
    assert every == set(STAGES)
    assert {stage.value for stage in STAGE_LEASE_S} == every


def test_the_public_progress_numbers_stand() -> None:
    assert [PROGRESS[stage] for stage in RECONSTRUCT_STAGES] == [
        0.0, 12.5, 25.0, 37.5, 50.0, 62.5, 75.0, 87.5,
    ]  # fmt: skip
