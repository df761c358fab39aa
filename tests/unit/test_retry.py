"""The retry table: complete, bounded, deterministic."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.model import Job, JobKind, Layer, Reason, Reservation, Stage, Step, Verdict
from dispatcher.core.retry import (
    JITTER,
    MAX_DELAY_S,
    RULES,
    SHRINK_STEPS,
    decide,
    delay_s,
    layer_of,
)
from dispatcher.core.work_size import MAX_STRIDE
from worker_agent.protocol import FailureCode

JOB = Job(
    id="j", kind=JobKind.RECONSTRUCT, acquisition="a", name="n", auv="x", created_at=0.0
)  # fmt: skip


def with_retries(**retries: int) -> Job:
    return dataclasses.replace(JOB, retries=retries)


def test_every_reason_and_every_failure_code_of_the_agent_has_a_rule() -> None:
    assert set(RULES) == set(Reason)
    assert {code.value for code in FailureCode} <= {reason.value for reason in RULES}
    assert all(rule.advice for rule in RULES.values())


@given(
    reason=st.sampled_from(Reason),
    retries=st.dictionaries(st.sampled_from([layer.value for layer in Layer]), st.integers(0, 50)),
)
def test_no_reason_is_retried_for_ever(reason: Reason, retries: dict[str, int]) -> None:
    job = dataclasses.replace(JOB, retries=retries)
    for _ in range(10):
        decision = decide(job, reason)
        assert 0.0 <= decision.delay_s <= MAX_DELAY_S * (1 + JITTER)
        if decision.verdict in (Verdict.HOLD, Verdict.FAIL):
            return
        used = {**job.retries, decision.layer.value: decision.retries_used + 1}
        job = dataclasses.replace(job, retries=used)
    raise AssertionError(f"{reason} was retried ten times")


@given(job=st.text(max_size=30), used=st.integers(0, 1000), base=st.floats(0.001, 60.0))
def test_delays_grow_are_capped_and_repeat(job: str, used: int, base: float) -> None:
    delay = delay_s(job, Layer.HOST, used, base)
    assert delay == delay_s(job, Layer.HOST, used, base)
    nominal = min(MAX_DELAY_S, base * 2.0 ** min(used, 60))
    assert nominal * (1 - JITTER) <= delay <= nominal * (1 + JITTER)


def test_jobs_that_fail_together_do_not_come_back_together() -> None:
    delays = {delay_s(f"job-{n}", Layer.TRANSPORT, 3, 2.0) for n in range(50)}
    assert len(delays) == 50 and max(delays) - min(delays) > 4.0


@pytest.mark.parametrize("reason", [r for r in Reason if layer_of(r) is Layer.DATA])
def test_data_is_held_the_first_time(reason: Reason) -> None:
    assert decide(JOB, reason).verdict is Verdict.HOLD


@pytest.mark.parametrize("reason", [Reason.STAGE_CRASHED, Reason.STAGE_SIGNALLED])
def test_code_gets_a_try_here_and_one_elsewhere_whatever_the_hosts_did(reason: Reason) -> None:
    tired = with_retries(host=4, transport=5)
    assert decide(tired, reason).verdict is Verdict.RETRY
    assert not decide(tired, reason).elsewhere
    assert decide(with_retries(code=1), reason).elsewhere
    assert decide(with_retries(code=2), reason).verdict is Verdict.HOLD


def test_transport_has_five_tries_of_its_own() -> None:
    verdicts = [
        decide(with_retries(transport=n, code=1), Reason.TRANSFER_FAILED).verdict for n in range(6)
    ]
    assert verdicts == [Verdict.RETRY] * 5 + [Verdict.HOLD]


@pytest.mark.parametrize(
    "reason",
    [Reason.HOST_KEY_MISMATCH, Reason.HOST_AUTH_FAILED, Reason.DISK_FULL, Reason.HOST_UNREACHABLE],
)
def test_an_unusable_host_is_left_at_once(reason: Reason) -> None:
    assert decide(JOB, reason).elsewhere


def test_a_rebooted_host_keeps_its_job_until_it_reboots_again_and_again() -> None:
    elsewhere = [decide(with_retries(host=n), Reason.HOST_REBOOTED).elsewhere for n in range(4)]
    assert elsewhere == [False, False, True, True]


def test_out_of_memory_escalates_what_was_promised() -> None:
    promised = Reservation(job="j", attempt=1, host="h", slot="train", gpu="G", mib=6001)
    job = dataclasses.replace(JOB, stage=Stage.TRAINING, shrink=SHRINK_STEPS, reservation=promised)
    decision = decide(job, Reason.GPU_OUT_OF_MEMORY)
    assert (decision.verdict, decision.need_mib) == (Verdict.ESCALATE, 9002)
    assert decision.shrink == SHRINK_STEPS
    spent = dataclasses.replace(job, retries={"resource": 3}, need_mib=20000)
    assert decide(spent, Reason.GPU_OUT_OF_MEMORY).verdict is Verdict.HOLD


def test_a_stage_without_a_device_that_ran_out_of_memory_goes_elsewhere_the_second_time() -> None:
    first = decide(JOB, Reason.OUT_OF_MEMORY)
    assert (first.verdict, first.need_mib, first.elsewhere) == (Verdict.RETRY, None, False)
    assert decide(with_retries(resource=1), Reason.OUT_OF_MEMORY).elsewhere


def test_a_stitch_that_ran_out_of_ram_asks_for_more_each_time() -> None:
    promised = Reservation(job="j", attempt=1, host="h", slot="stitch", ram_mib=2000)
    job = dataclasses.replace(JOB, kind=JobKind.STITCH, stage=Stage.STITCH, reservation=promised)
    first = decide(job, Reason.OUT_OF_MEMORY)
    assert (first.verdict, first.need_ram_mib, first.stride) == (Verdict.ESCALATE, 3000, 1)
    promised = dataclasses.replace(promised, ram_mib=3000)
    again = dataclasses.replace(job, reservation=promised, need_ram_mib=3000)
    assert decide(again, Reason.OUT_OF_MEMORY).need_ram_mib == 4500


def test_fewer_frames_are_taken_at_once_where_no_ram_was_promised() -> None:
    job = dataclasses.replace(JOB, stage=Stage.COLMAP_RECONSTRUCTION)
    assert decide(job, Reason.OUT_OF_MEMORY).stride == 2
    last = decide(dataclasses.replace(job, stride=MAX_STRIDE), Reason.OUT_OF_MEMORY)
    assert (last.verdict, last.stride) == (Verdict.RETRY, MAX_STRIDE)


def test_resource_gpu_and_code_have_budgets_of_their_own() -> None:
    tired = with_retries(resource=3, code=1)
    assert decide(tired, Reason.GPU_FAULT).verdict is Verdict.RETRY
    assert decide(with_retries(gpu=3), Reason.GPU_FAULT).verdict is Verdict.HOLD
    assert decide(with_retries(gpu=3), Reason.DISK_FULL).verdict is Verdict.RETRY


def test_results_wait_longer_for_a_host_that_is_away() -> None:
    job = dataclasses.replace(with_retries(transport=9), step=Step.COLLECT, host="h")
    assert decide(job, Reason.HOST_UNREACHABLE).verdict is Verdict.RETRY
    spent = dataclasses.replace(job, retries={"transport": 10})
    assert decide(spent, Reason.HOST_UNREACHABLE).verdict is Verdict.HOLD
    patience = sum(delay_s("j", Layer.TRANSPORT, n, 2.0) for n in range(10))
    assert patience > 1200


def test_blame_moves_a_failure_to_the_place_s_budget() -> None:
    spent = with_retries(code=2)
    assert decide(spent, Reason.STAGE_CRASHED).verdict is Verdict.HOLD
    host = decide(spent, Reason.STAGE_CRASHED, blame=Layer.HOST)
    assert (host.verdict, host.layer, host.elsewhere) == (Verdict.RETRY, Layer.HOST, True)
    device = decide(spent, Reason.STAGE_CRASHED, blame=Layer.GPU)
    assert (device.layer, device.elsewhere) == (Layer.GPU, False)
    used = with_retries(host=5)
    assert decide(used, Reason.STAGE_CRASHED, blame=Layer.HOST).verdict is Verdict.HOLD


def test_a_lease_that_ran_out_on_the_host_says_nothing_against_the_host() -> None:
    """The link or the dispatcher was away; the work done so far lies there."""
    assert not decide(JOB, Reason.LEASE_EXPIRED).elsewhere
