"""The state machine, against a model of the shell that does anything a real one may do."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dispatcher.core import effects as fx
from dispatcher.core import events as ev
from dispatcher.core import model as m
from dispatcher.core.machine import (
    LATE,
    LIVE_STEPS,
    TRANSITIONS,
    IllegalTransition,
    StaleEvent,
    recover,
    step,
)
from dispatcher.core.model import JobKind, JobState, Reason, Stage, Step
from dispatcher.core.moves import needs_inputs
from tests.unit.jobs import at_run, drive, new_job, reservation

FAILURES = [r for r in Reason if r is not Reason.BACKOFF]


class Shell(RuleBasedStateMachine):
    """Performs effects in any order, with any outcome; forgets nothing, restarts at will."""

    @initialize(kind=st.sampled_from(JobKind))
    def begin(self, kind: JobKind) -> None:
        self.job = new_job(kind)
        self.clock = 0.0
        self.effects: list[fx.Effect] = []
        self.attempts_started = 0

    def feed(self, event: ev.Event) -> None:
        before = self.job
        try:
            self.job, effects = step(before, event)
        except StaleEvent:
            return
        self.effects += effects
        if self.job.state in m.SETTLED and before.state not in m.SETTLED:
            assert any(isinstance(e, fx.PlanStitches) for e in effects), "a stitch may be due"

    def now(self) -> float:
        self.clock += 1.0
        return self.clock

    @rule(host=st.sampled_from(["h1", "h2"]), move=st.integers(0, 5).map(lambda n: n == 0))
    def decide(self, host: str, move: bool = False) -> None:
        """`move`: its host is drained, so it goes to another one from wherever it waits."""
        if self.job.step is not Step.PLACE:
            return
        if self.job.host is None or move:
            self.feed(ev.HostAssigned(at=self.now(), host=host))
        else:
            self.feed(ev.StagePlaced(at=self.now(), reservation=reservation(self.job)))

    @precondition(lambda self: self.effects)
    @rule(
        data=st.data(),
        good=st.integers(0, 3).map(bool),
        reason=st.sampled_from(FAILURES),
        twice=st.booleans(),
    )
    def perform(self, data: st.DataObject, good: bool, reason: Reason, twice: bool) -> None:
        effect = self.effects.pop(data.draw(st.integers(0, len(self.effects) - 1)))
        self.end(effect, good, reason)
        if twice and isinstance(effect, fx.FollowAttempt):
            self.end(effect, good, reason)

    @rule(stages=st.integers(1, 8))
    def go_well(self, stages: int) -> None:
        """Depth: a run of successes."""
        for _ in range(3 * stages):
            self.decide("h1")
            if self.effects:
                self.end(self.effects.pop(0), True, Reason.STAGE_CRASHED)

    def end(self, effect: fx.Effect, good: bool, reason: Reason) -> None:
        at = self.now()
        match effect:
            case fx.TransferInputs() if good:
                self.feed(ev.InputsReady(at=at))
            case fx.CollectResults() if good:
                self.feed(ev.ResultsCollected(at=at))
            case fx.HandOver(source=source) if good:
                self.feed(ev.HandedOver(at=at, source=source, stage=self.job.stage, route="direct"))
            case fx.HandOver(source=source) if reason is Reason.INPUT_MISSING:
                self.feed(ev.HandoffAbandoned(at=at, source=source, message="x"))
            case fx.TransferInputs() | fx.CollectResults() | fx.HandOver():
                self.feed(ev.TransferFailed(at=at, reason=reason, message="x"))
            case fx.StartAttempt(attempt=n) if good:
                self.feed(ev.AttemptStarted(at=at, attempt=n))
            case fx.FollowAttempt(attempt=n) if good:
                self.feed(ev.AttemptSucceeded(at=at, attempt=n))
            case fx.StartAttempt(attempt=n) | fx.FollowAttempt(attempt=n):
                self.feed(ev.AttemptFailed(at=at, attempt=n, reason=reason, message="x"))
            case fx.CancelAttempt():
                self.feed(ev.CancelConfirmed(at=at))
            case fx.ReclaimInputs(host=host) if good:
                self.feed(ev.InputsReclaimed(at=at, host=host, removed_bytes=1, freed_bytes=0))
            case fx.ReclaimLeftovers(host=host) if good:
                gone = ev.LeftoversReclaimed(at=at, host=host, removed_bytes=1, freed_bytes=0)
                self.feed(gone)
            case fx.ReclaimInputs(host=host) | fx.ReclaimLeftovers(host=host):
                self.feed(ev.ReclaimFailed(at=at, host=host, message="x"))

    @rule()
    def restart(self) -> None:
        self.effects = list(recover(self.job))

    @precondition(lambda self: self.job.state is JobState.HELD or self.job.step is not Step.REST)
    @rule(surely=st.integers(0, 3))
    def cancel(self, surely: int) -> None:
        if surely == 0:
            self.feed(ev.CancelRequested(at=self.now()))

    @precondition(lambda self: self.job.step is Step.REST)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        stage = data.draw(st.sampled_from([None, *m.stages_of(self.job.kind)]))
        self.feed(ev.ReleaseRequested(at=self.now(), stage=stage))

    @invariant()
    def consistent(self) -> None:
        job = self.job
        assert (job.reservation is not None) == (job.step in LIVE_STEPS)
        if job.reservation is not None:
            assert (job.reservation.attempt, job.reservation.host) == (job.attempt, job.host)
        assert (job.step is Step.REST) == (job.state in m.SETTLED)
        assert (job.state is JobState.QUEUED) == (job.host is None and job.step is Step.PLACE)
        assert job.step is Step.PLACE or job.step is Step.REST or job.host is not None
        assert job.stage in m.stages_of(job.kind) or job.state is JobState.DONE
        assert job.host not in job.leftovers and job.origin not in job.leftovers
        if job.origin is not None:
            assert not needs_inputs(job.kind, job.stage), "its outputs do not say all it reads"
            assert job.host is None or job.step in (Step.TRANSFER, Step.REST)
        if job.state in (JobState.HELD, JobState.ERROR):
            assert job.reason is not None and job.message
            assert f"cosma job retry {job.id}" in job.advice
        if job.state is JobState.DONE:
            assert job.stage is Stage.COMPLETED and job.reason is None
        assert not any(
            isinstance(e, fx.StartAttempt) and e.attempt > job.attempt for e in self.effects
        )

    @invariant()
    def something_moves_it(self) -> None:
        """Whatever the effects in flight: after a restart, the job is driven by an effect or
        waits for placement or for the operator."""
        driven = any(not isinstance(e, fx.PlanStitches) for e in recover(self.job))
        assert driven or self.job.step in (Step.PLACE, Step.REST)


Shell.TestCase.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
TestShell = Shell.TestCase


@pytest.mark.parametrize("kind", list(JobKind))
def test_the_straight_way_to_done(kind: JobKind) -> None:
    job = new_job(kind)
    job, effects = step(job, ev.HostAssigned(at=0.0, host="h"))
    assert (job.state, job.step) == (JobState.CLAIMED, Step.TRANSFER)
    assert effects == (fx.TransferInputs(job=job.id, host="h"),)
    job, effects = step(job, ev.InputsReady(at=0.0))
    assert (job.state, job.inputs_on_host, effects) == (JobState.CLAIMED, True, ())
    states, seen = [], []
    for number, stage in enumerate(m.stages_of(kind), start=1):
        job, effects = step(job, ev.StagePlaced(at=0.0, reservation=reservation(job)))
        assert (job.attempt, job.stage) == (number, stage)
        assert effects == (fx.StartAttempt(job=job.id, attempt=number),)
        states.append(job.state)
        job, effects = step(job, ev.AttemptStarted(at=0.0, attempt=number))
        assert effects == (fx.FollowAttempt(job=job.id, attempt=number),)
        job, effects = step(job, ev.AttemptSucceeded(at=0.0, attempt=number))
        if any(isinstance(e, fx.ReclaimInputs) for e in effects):
            seen.append(stage)
            done = ev.InputsReclaimed(at=0.0, host="h", removed_bytes=9, freed_bytes=9)
            job, _ = step(job, done)
    assert effects[0] == fx.CollectResults(job=job.id, host="h")
    job, effects = step(job, ev.ResultsCollected(at=0.0))
    assert (job.state, job.stage, job.inputs_on_host) == (JobState.DONE, Stage.COMPLETED, False)
    assert effects == (fx.PlanStitches(job=job.id, acquisition="dive"),)
    if kind is JobKind.STITCH:
        assert states == [JobState.RUNNING] and seen == [Stage.STITCH]
    else:
        assert states == [JobState.EXTRACTING] * 4 + [JobState.RUNNING] * 4
        assert seen == [Stage.FRAME_EXTRACTION]


def test_an_illegal_pair_tells_the_story() -> None:
    job = at_run(Stage.TRAINING, reason=None)
    with pytest.raises(IllegalTransition) as raised:
        step(job, ev.ReleaseRequested(at=0.0))
    text = str(raised.value)
    for part in ("dive-a-seg1", "running", "step run", "Training", "host h", "attempt 1"):
        assert part in text
    with pytest.raises(IllegalTransition):
        step(dataclasses.replace(new_job(), state=JobState.DONE, step=Step.REST),
             ev.PriorityChanged(at=0.0, priority=1))  # fmt: skip


def test_events_of_older_attempts_and_of_attempts_that_ended_are_stale() -> None:
    job = at_run(Stage.TRAINING, attempt=4)
    with pytest.raises(StaleEvent):
        step(job, ev.AttemptSucceeded(at=0.0, attempt=4))
    ended, _ = step(job, ev.AttemptSucceeded(at=0.0, attempt=5))
    with pytest.raises(StaleEvent):
        step(ended, ev.AttemptFailed(at=0.0, attempt=5, reason=Reason.CANCELLED, message=""))


def test_no_pair_is_both_legal_and_late() -> None:
    assert not LATE & TRANSITIONS.keys()


def test_a_job_knows_its_frames_once_they_are_extracted() -> None:
    job = at_run(Stage.FRAME_EXTRACTION, frames=400, pixels=1)
    found = {"frames": 391, "width": 960, "height": 540}
    after, _ = step(job, ev.AttemptSucceeded(at=0.0, attempt=job.attempt, metrics=found))
    assert (after.frames, after.pixels) == (391, 518_400)


def test_results_are_collected_from_the_host_that_has_them_or_not_at_all() -> None:
    job = new_job(host="h", stage=Stage.SPLAT_EXPORT, step=Step.COLLECT, state=JobState.RUNNING)
    for tries in range(1, 11):
        job, effects = step(
            job, ev.TransferFailed(at=10.0, reason=Reason.HOST_UNREACHABLE, message="x")
        )
        assert (job.step, job.host) == (Step.COLLECT, "h")
        assert job.not_before > 10.0 and job.retries == {"transport": tries}
        assert effects == (fx.CollectResults(job=job.id, host="h"),)
    job, _ = step(job, ev.TransferFailed(at=10.0, reason=Reason.HOST_UNREACHABLE, message="x"))
    assert job.state is JobState.HELD


def test_cancelling_a_running_attempt_keeps_its_promise_until_it_is_over() -> None:
    job = at_run(Stage.TRAINING)
    job, effects = step(job, ev.CancelRequested(at=0.0, by="ann"))
    assert job.step is Step.CANCEL and job.reservation is not None
    assert effects == (fx.CancelAttempt(job=job.id, attempt=1),)
    for end in (
        ev.CancelConfirmed(at=0.0),
        ev.AttemptSucceeded(at=0.0, attempt=1),
        ev.AttemptFailed(at=0.0, attempt=1, reason=Reason.CANCELLED, message=""),
    ):
        over, effects = step(job, end)
        assert over.state is JobState.CANCELLED and over.reservation is None
        assert over.message == "cancelled by ann"
        assert fx.ReclaimInputs(job=job.id, host="h") in effects


def test_cancelling_a_transfer_reclaims_what_has_arrived() -> None:
    job = drive(new_job(), [ev.HostAssigned(at=0.0, host="h")])
    job, effects = step(job, ev.CancelRequested(at=0.0))
    assert job.state is JobState.CANCELLED
    assert fx.ReclaimInputs(job=job.id, host="h") in effects
    assert fx.ReclaimInputs(job=job.id, host="h") in recover(job)


def test_recovery_issues_again_what_was_under_way() -> None:
    running = at_run(Stage.METADATA_EXTRACTION)
    assert recover(running) == (
        fx.FollowAttempt(job=running.id, attempt=1),
        fx.ReclaimInputs(job=running.id, host="h"),
    )
    extracting = at_run(Stage.FRAME_EXTRACTION)
    assert recover(extracting) == (fx.FollowAttempt(job=extracting.id, attempt=1),)
    assert recover(new_job()) == ()
