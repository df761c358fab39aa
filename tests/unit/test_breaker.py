"""Circuit breakers: when they open, who is let in, and that nothing stays away for ever."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dispatcher.core.breaker import (
    NO_EVIDENCE,
    Breaker,
    Limits,
    Position,
    after_failure,
    after_test,
    begin_test,
    counts,
    due,
    interrupted,
    quarantine,
    subject,
)
from dispatcher.core.events import AttemptFailed
from dispatcher.core.model import Job, JobKind, Layer, Reason, Reservation
from dispatcher.core.retry import layer_of

LIMITS = Limits()
CLOSED = Breaker(key="h", host="h")


def job(name: str = "j", gpu: str | None = None) -> Job:
    held = Reservation(job=name, attempt=1, host="h", slot="train", gpu=gpu)
    return Job(
        id=name, kind=JobKind.RECONSTRUCT, acquisition="a", name=name, auv="x", created_at=0.0,
        host="h", attempt=1, reservation=held,
    )  # fmt: skip


def failed(at: float, reason: Reason = Reason.STAGE_CRASHED) -> AttemptFailed:
    return AttemptFailed(at=at, attempt=1, reason=reason, message="it broke")


def fail(breaker: Breaker, *failures: tuple[str, float]) -> Breaker:
    for name, at in failures:
        breaker = after_failure(breaker, job(name), failed(at), LIMITS)
    return breaker


def test_three_fast_failures_of_two_jobs_open_it_and_say_why() -> None:
    opened = fail(CLOSED, ("a", 100.0), ("b", 110.0), ("a", 160.0))
    assert (opened.position, opened.opened_at, opened.until) == (Position.OPEN, 160.0, 180.0)
    held = quarantine(opened)
    assert held is not None and not held.failed_test
    assert "3 fast failures in 60 s" in held.line and "stage_crashed" in held.line
    assert "00:02:40Z" in held.line and "00:03:00Z" in held.line  # since when, until when
    assert "cosma worker resume h" in held.line


@pytest.mark.parametrize(
    "failures",
    [
        [("a", 1.0), ("a", 2.0), ("a", 3.0), ("a", 4.0)],  # one job: it may be the job
        [("a", 1.0), ("b", 2.0)],
        [("a", 1.0), ("b", 400.0), ("c", 800.0)],  # never three within the window
    ],
)
def test_what_does_not_open_it(failures: list[tuple[str, float]]) -> None:
    breaker = fail(CLOSED, *failures)
    assert breaker.position is Position.CLOSED and quarantine(breaker) is None


def test_a_fault_that_the_gpu_reports_opens_at_once() -> None:
    key, host, gpu = subject(job(gpu="GPU-7"))
    assert (key, host, gpu) == ("GPU-7", "h", "GPU-7")
    breaker = Breaker(key=key, host=host, gpu=gpu)
    opened = after_failure(breaker, job(), failed(5.0, Reason.GPU_FAULT), LIMITS)
    assert opened.position is Position.OPEN


def test_a_cpu_device_is_its_host() -> None:
    assert subject(job(gpu="CPU-abc")) == ("h", "h", None)
    assert subject(job()) == ("h", "h", None)


@given(reason=st.sampled_from(Reason), ran=st.floats(0.0, 1e5))
def test_only_fast_failures_of_host_gpu_and_code_count(reason: Reason, ran: float) -> None:
    layer = layer_of(reason)
    if counts(reason, ran, LIMITS):
        assert layer in (Layer.HOST, Layer.GPU, Layer.CODE) and reason not in NO_EVIDENCE
        assert ran <= LIMITS.fast_s or reason is Reason.GPU_FAULT
    if layer in (Layer.DATA, Layer.TRANSPORT, Layer.RESOURCE, Layer.OPERATOR):
        assert not counts(reason, 0.0, LIMITS)


def test_a_test_that_passes_lets_it_back_in_with_a_clean_slate() -> None:
    opened = fail(CLOSED, ("a", 1.0), ("b", 2.0), ("c", 3.0))
    assert not due(opened, 22.9) and due(opened, 23.0)
    closed = after_test(begin_test(opened), True, "", 25.0, LIMITS)
    assert closed.position is Position.CLOSED and quarantine(closed) is None
    assert fail(closed, ("a", 26.0), ("b", 27.0)).position is Position.CLOSED
    again = fail(closed, ("a", 26.0), ("b", 27.0), ("a", 28.0))
    assert again.until - again.opened_at == 40.0, "who comes back soon waits longer"
    later = fail(closed, ("a", 9e4), ("b", 9e4), ("a", 9e4))
    assert later.until - later.opened_at == 20.0, "old trips are forgotten"


def test_a_failed_test_keeps_it_away_for_longer_each_time() -> None:
    breaker, now, waits = fail(CLOSED, ("a", 1.0), ("b", 2.0), ("c", 3.0)), 3.0, []
    for _ in range(12):
        now = breaker.until
        breaker = after_test(begin_test(breaker), False, "sift: 3 of 500", now, LIMITS)
        waits.append(breaker.until - now)
    assert waits == sorted(waits) and waits[:2] == [40.0, 80.0]
    assert waits[-1] == LIMITS.cooldown_most_s
    held = quarantine(breaker)
    assert held is not None and held.failed_test and "sift: 3 of 500" in held.line


def test_a_test_that_could_not_run_proves_nothing() -> None:
    opened = fail(CLOSED, ("a", 1.0), ("b", 2.0), ("c", 3.0))
    again = after_test(begin_test(opened), None, "no route", 30.0, LIMITS)
    assert (again.position, again.until, again.failed_tests) == (Position.OPEN, 50.0, 0)


def test_a_test_cut_off_by_a_restart_is_run_again_at_once() -> None:
    opened = fail(CLOSED, ("a", 1.0), ("b", 2.0), ("c", 3.0))
    assert due(interrupted(begin_test(opened)), 3.0)
    assert interrupted(opened) == opened


def test_a_clock_that_is_set_back_keeps_nothing_away() -> None:
    assert due(fail(CLOSED, ("a", 1e6), ("b", 1e6), ("c", 1e6)), 10.0)


class Life(RuleBasedStateMachine):
    """Failures, tests, restarts and time in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = CLOSED
        self.now = 1000.0
        self.tests_running = 0

    @rule(seconds=st.floats(0.1, 2000.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(name=st.sampled_from("abc"), gpu_fault=st.integers(0, 9).map(lambda n: n == 0))
    def a_job_fails(self, name: str, gpu_fault: bool) -> None:
        reason = Reason.GPU_FAULT if gpu_fault else Reason.STAGE_CRASHED
        before = self.breaker
        self.breaker = after_failure(before, job(name), failed(self.now, reason), LIMITS)
        if before.position is not Position.CLOSED:
            assert self.breaker == before

    @precondition(lambda self: due(self.breaker, self.now))
    @rule()
    def a_test_begins(self) -> None:
        self.breaker = begin_test(self.breaker)
        self.tests_running += 1
        assert self.tests_running == 1, "one at a time"

    @precondition(lambda self: self.tests_running)
    @rule(ok=st.sampled_from([True, False, None]))
    def a_test_ends(self, ok: bool | None) -> None:
        self.breaker = after_test(self.breaker, ok, "x", self.now, LIMITS)
        self.tests_running -= 1
        assert (self.breaker.position is Position.CLOSED) == (ok is True)

    @rule()
    def the_dispatcher_restarts(self) -> None:
        self.breaker = interrupted(self.breaker)
        self.tests_running = 0

    @invariant()
    def it_is_closed_tested_or_will_be_tested_soon(self) -> None:
        one = self.breaker
        assert (one.position is Position.TESTING) == bool(self.tests_running)
        assert (quarantine(one) is None) == (one.position is Position.CLOSED)
        if one.position is Position.OPEN:
            assert one.why and one.until <= self.now + LIMITS.cooldown_most_s
            assert due(one, one.until)
        assert len(one.failures) < 200


Life.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
TestLife = Life.TestCase


def test_old_failures_are_dropped() -> None:
    breaker = dataclasses.replace(CLOSED)
    for n in range(100):
        breaker = fail(breaker, ("a", n * 100.0))
    assert len(breaker.failures) <= LIMITS.window_s / 100.0
