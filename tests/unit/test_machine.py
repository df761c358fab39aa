"""The state machine, against a model of the shell that does anything a real one may do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

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
from dispatcher.core.model import Job, JobKind, JobState, Layer, Reason, Stage, Step
from dispatcher.core.moves import needs_inputs
from dispatcher.core.work_size import MAX_STRIDE

FAILURES = [r for r in Reason if r is not Reason.BACKOFF]


def new_job(kind: JobKind = JobKind.RECONSTRUCT, **values: object) -> Job:
    job = Job(
        id="dive-a-seg1",
        kind=kind,
        acquisition="dive",
        name="seg1",
        auv="a",
        created_at=0.0,
        stage=m.stages_of(kind)[0],
    )
    return dataclasses.replace(job, **values)  # type: ignore[arg-type]


def reservation(job: Job) -> m.Reservation:
    return m.Reservation(
        job=job.id, attempt=job.attempt + 1, host=job.host or "", slot="train", gpu="G", mib=1000
    )


def drive(job: Job, events: Iterable[ev.Event]) -> Job:
    for event in events:
        job, _ = step(job, event)
    return job


def at_run(stage: Stage, kind: JobKind = JobKind.RECONSTRUCT, **values: object) -> Job:
    """On host h, in a live attempt of `stage`."""
    job = new_job(kind, host="h", stage=stage, state=JobState.CLAIMED, inputs_on_host=True)
    job = dataclasses.replace(job, **values)  # type: ignore[arg-type]
    placed = ev.StagePlaced(at=1.0, reservation=reservation(job))
    return drive(job, [placed, ev.AttemptStarted(at=2.0, attempt=job.attempt + 1)])


def failed(job: Job, reason: Reason, message: str = "it broke", **values: object) -> ev.Event:
    return ev.AttemptFailed(at=10.0, attempt=job.attempt, reason=reason, message=message, **values)  # type: ignore[arg-type]


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


def test_data_is_held_at_once_and_its_frames_stay_where_they_are() -> None:
    job = at_run(Stage.VALIDATION)
    held, effects = step(job, failed(job, Reason.INPUT_EMPTY, "GX01.MP4: the file has 0 bytes"))
    assert (held.state, held.reason) == (JobState.HELD, Reason.INPUT_EMPTY)
    assert held.message == "GX01.MP4: the file has 0 bytes"
    assert held.host == "h" and held.inputs_on_host
    assert effects == (fx.PlanStitches(job=job.id, acquisition="dive"),)
    again, effects = step(held, ev.ReleaseRequested(at=0.0))
    assert (again.state, again.step, again.retries) == (JobState.CLAIMED, Step.TRANSFER, {})
    assert again.reason is None and effects == (fx.TransferInputs(job=job.id, host="h"),)


def test_a_crash_is_tried_once_more_there_once_elsewhere_and_then_held() -> None:
    job = at_run(Stage.COLMAP_RECONSTRUCTION)
    again, _ = step(job, failed(job, Reason.STAGE_CRASHED))
    assert (again.step, again.host, again.stage) == (Step.PLACE, "h", Stage.COLMAP_RECONSTRUCTION)
    assert again.not_before > 10.0 and again.retries == {"code": 1}
    job = drive(again, [ev.StagePlaced(at=0.0, reservation=reservation(again))])
    moved, _ = step(job, failed(job, Reason.STAGE_CRASHED))
    assert (moved.state, moved.host, moved.avoid_hosts) == (JobState.QUEUED, None, ("h",))
    job = drive(moved, [ev.HostAssigned(at=0.0, host="other"), ev.InputsReady(at=0.0)])
    job = drive(job, [ev.StagePlaced(at=0.0, reservation=reservation(job))])
    held, _ = step(job, failed(job, Reason.STAGE_CRASHED))
    assert held.state is JobState.HELD and "after 2 retries" in held.message
    assert held.advice == (
        "read the log (cosma job logs dive-a-seg1); then: cosma job retry dive-a-seg1"
    )


def test_host_faults_leave_the_budget_of_the_code_alone_and_move_the_job() -> None:
    job = at_run(Stage.TRAINING)
    moved, effects = step(job, failed(job, Reason.HOST_UNREACHABLE))
    assert (moved.state, moved.host, moved.stage) == (JobState.QUEUED, None, Stage.TRAINING)
    assert moved.origin == "h"
    assert moved.avoid_hosts == ("h",) and "code" not in moved.retries
    assert not moved.inputs_on_host
    assert effects == (fx.ReclaimInputs(job=job.id, host="h"),)


def test_training_out_of_memory_takes_smaller_plans_then_a_bigger_gpu() -> None:
    job = at_run(Stage.TRAINING)
    plans = []
    for _ in range(3):
        job, _ = step(job, failed(job, Reason.GPU_OUT_OF_MEMORY))
        assert (job.step, job.host) == (Step.PLACE, "h")
        plans.append((job.shrink, job.need_mib))
        promised = dataclasses.replace(reservation(job), mib=job.need_mib or 1000)
        job = drive(job, [ev.StagePlaced(at=0.0, reservation=promised)])
    assert plans == [(1, None), (2, None), (2, 1500)]
    held, _ = step(job, failed(job, Reason.GPU_OUT_OF_MEMORY))
    assert held.state is JobState.HELD and f"cosma job retry {job.id}" in held.advice


@pytest.mark.parametrize("stage", [Stage.COLMAP_RECONSTRUCTION, Stage.TRAINING])
def test_out_of_ram_asks_for_more_of_it_then_takes_fewer_frames(stage: Stage) -> None:
    job = at_run(stage)
    plans = []
    for _ in range(3):
        promised = dataclasses.replace(job.reservation, ram_mib=4000)  # type: ignore[type-var]
        job = dataclasses.replace(job, reservation=promised)
        job, _ = step(job, failed(job, Reason.OUT_OF_MEMORY))
        assert (job.step, job.host, job.stage) == (Step.PLACE, "h", stage)
        plans.append((job.need_ram_mib, job.stride, job.shrink))
        job = drive(job, [ev.StagePlaced(at=0.0, reservation=reservation(job))])
    assert plans == [(6000, 1, 0), (3000, 2, 0), (1500, 4, 0)]
    held, _ = step(job, failed(job, Reason.OUT_OF_MEMORY))
    assert held.state is JobState.HELD and held.stride == 4


def plan(shrink: int, stride: int) -> ev.PlanReduced:
    return ev.PlanReduced(at=0.0, shrink=shrink, stride=stride, message="x")


def test_what_fits_no_host_takes_a_smaller_plan_and_never_a_larger_one() -> None:
    job = new_job(need_ram_mib=9000, need_mib=7000)
    thinned, effects = step(job, plan(0, 3))
    assert (thinned.stride, thinned.need_ram_mib, effects) == (3, 3000, ())
    assert (thinned.step, thinned.shrink, thinned.need_mib) == (Step.PLACE, 0, 7000)
    shrunk, _ = step(thinned, plan(2, 3))
    assert (shrunk.stride, shrunk.shrink, shrunk.need_ram_mib) == (3, 2, 3000)
    assert shrunk.need_mib == 4200, "it was asked for by a larger plan"
    for stale in (plan(2, 3), plan(1, 4), plan(3, 2), plan(2, MAX_STRIDE + 1), plan(9, 3)):
        with pytest.raises(StaleEvent):
            step(shrunk, stale)
    with pytest.raises(StaleEvent):
        step(at_run(Stage.TRAINING), plan(0, 2))


def test_a_job_knows_its_frames_once_they_are_extracted() -> None:
    job = at_run(Stage.FRAME_EXTRACTION, frames=400, pixels=1)
    found = {"frames": 391, "width": 960, "height": 540}
    after, _ = step(job, ev.AttemptSucceeded(at=0.0, attempt=job.attempt, metrics=found))
    assert (after.frames, after.pixels) == (391, 518_400)


def test_a_suspect_host_pays_for_the_failure_and_the_job_goes_elsewhere() -> None:
    job = at_run(Stage.COLMAP_RECONSTRUCTION, retries={"code": 2})
    held, _ = step(job, failed(job, Reason.STAGE_CRASHED))
    assert held.state is JobState.HELD
    moved, _ = step(job, failed(job, Reason.STAGE_CRASHED, blame=Layer.HOST))
    assert (moved.state, moved.host, moved.avoid_hosts) == (JobState.QUEUED, None, ("h",))
    assert moved.retries == {"code": 2, "host": 1}


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


@pytest.mark.parametrize(
    ("stage", "inputs", "expected"),
    [
        (Stage.TRAINING, False, (Step.PLACE, "h", Stage.TRAINING)),
        (Stage.FRAME_EXTRACTION, False, (Step.PLACE, None, Stage.VALIDATION)),
        (Stage.FRAME_EXTRACTION, True, (Step.TRANSFER, "h", Stage.VALIDATION)),
        (None, False, (Step.PLACE, None, Stage.VALIDATION)),
    ],
)
def test_a_rerun_starts_where_its_inputs_still_are(
    stage: Stage | None, inputs: bool, expected: tuple[Step, str | None, Stage]
) -> None:
    done = new_job(
        host="h", stage=Stage.COMPLETED, state=JobState.DONE, step=Step.REST,
        inputs_on_host=inputs, retries={"code": 1}, attempt=8,
    )  # fmt: skip
    again, _ = step(done, ev.ReleaseRequested(at=0.0, stage=stage))
    assert (again.step, again.host, again.stage) == expected
    assert again.retries == {} and again.attempt == 8


@pytest.mark.parametrize("where", ["transfer", "attempt"])
def test_a_full_disk_moves_the_job_and_nothing_of_it_stays_there(where: str) -> None:
    if where == "attempt":
        full = at_run(Stage.FRAME_EXTRACTION)
        event = failed(full, Reason.DISK_FULL)
    else:
        full = drive(new_job(), [ev.HostAssigned(at=0.0, host="h")])
        event = ev.TransferFailed(at=0.0, reason=Reason.DISK_FULL, message="9 bytes more")
    moved, effects = step(full, event)
    assert (moved.step, moved.host, moved.stage) == (Step.PLACE, None, Stage.VALIDATION)
    assert (moved.avoid_hosts, moved.retries) == (("h",), {"resource": 1})
    assert moved.leftovers == ("h",)
    assert effects[-1] == fx.ReclaimLeftovers(job=full.id, host="h") == recover(moved)[-1]


def test_what_the_rules_removed_is_made_again_from_the_first_stage() -> None:
    done = new_job(host="h", stage=Stage.COMPLETED, state=JobState.DONE, step=Step.REST)
    gone = ev.MadeReclaimed(
        at=0.0, host="h", kinds=("frames", "features"), removed_bytes=9, freed_bytes=9
    )
    done = drive(done, [gone, dataclasses.replace(gone, host="old", kinds=("training",))])
    assert done.reclaimed == ("frames", "features")
    for stage, expected in (
        (Stage.TRAINING, (None, Stage.VALIDATION)),
        (Stage.PLY_EXPORT, ("h", Stage.PLY_EXPORT)),
    ):
        again, _ = step(done, ev.ReleaseRequested(at=0.0, stage=stage))
        assert (again.host, again.stage) == expected
    again, _ = step(done, ev.ReleaseRequested(at=0.0, stage=Stage.TRAINING))
    there = drive(again, [ev.HostAssigned(at=0.0, host="h"), ev.InputsReady(at=0.0)])
    assert there.reclaimed == ()


def test_a_drained_dispatcher_holds_what_no_host_can_take() -> None:
    held, _ = step(
        new_job(),
        ev.TransferFailed(at=0.0, reason=Reason.HOST_KEY_MISMATCH, message="h: another key"),
    )
    assert (held.state, held.reason) == (JobState.HELD, Reason.HOST_KEY_MISMATCH)


def test_a_moved_job_takes_along_what_its_stages_made() -> None:
    job = new_job(host="h", state=JobState.RUNNING, stage=Stage.TRAINING)
    moved, effects = step(job, ev.HostAssigned(at=0.0, host="big"))
    assert (moved.step, moved.stage, moved.host) == (Step.TRANSFER, Stage.TRAINING, "big")
    bringing = fx.HandOver(job=job.id, host="big", source="h")
    assert effects == (bringing,) and recover(moved) == (bringing,)
    event = ev.HandedOver(at=0.0, source="h", stage=Stage.TRAINING, route="relayed")
    there, effects = step(moved, event)
    assert (there.step, there.stage, there.origin) == (Step.PLACE, Stage.TRAINING, None)
    removing = fx.ReclaimLeftovers(job=job.id, host="h")
    assert effects == (removing,) and recover(there) == (removing,)
    gone = ev.LeftoversReclaimed(at=0.0, host="h", removed_bytes=9, freed_bytes=0)
    assert recover(drive(there, [gone])) == ()


@pytest.mark.parametrize("stage", [Stage.VALIDATION, Stage.FRAME_EXTRACTION])
def test_a_job_that_still_reads_the_source_starts_afresh_elsewhere(stage: Stage) -> None:
    job = new_job(host="h", state=JobState.EXTRACTING, stage=stage, inputs_on_host=True)
    moved, effects = step(job, ev.HostAssigned(at=0.0, host="big"))
    assert (moved.step, moved.stage, moved.origin) == (Step.TRANSFER, Stage.VALIDATION, None)
    assert effects == (
        fx.ReclaimInputs(job=job.id, host="h"),
        fx.TransferInputs(job=job.id, host="big"),
    )


def test_outputs_that_cannot_be_had_are_made_again() -> None:
    job = new_job(host="h", state=JobState.RUNNING, stage=Stage.TRAINING)
    moved, _ = step(job, ev.HostAssigned(at=0.0, host="big"))
    afresh, effects = step(moved, ev.HandoffAbandoned(at=0.0, source="h", message="h is dead"))
    assert (afresh.step, afresh.stage, afresh.host) == (Step.TRANSFER, Stage.VALIDATION, "big")
    assert afresh.origin is None and afresh.leftovers == ()
    assert effects == (fx.TransferInputs(job=job.id, host="big"),)


def test_a_handoff_that_fails_at_the_new_host_goes_on_to_another() -> None:
    job = new_job(host="h", state=JobState.RUNNING, stage=Stage.TRAINING)
    moved, _ = step(job, ev.HostAssigned(at=0.0, host="full"))
    job, effects = step(moved, ev.TransferFailed(at=0.0, reason=Reason.DISK_FULL, message="x"))
    assert (job.state, job.origin, job.avoid_hosts) == (JobState.QUEUED, "h", ("full",))
    assert effects == (fx.ReclaimLeftovers(job=job.id, host="full"),)
    job, effects = step(job, ev.HostAssigned(at=0.0, host="big"))
    assert effects == (fx.HandOver(job=job.id, host="big", source="h"),)
    assert job.leftovers == ("full",)


def test_a_job_that_comes_back_is_not_cleared_away_under_its_feet() -> None:
    job = new_job(host="a", state=JobState.RUNNING, stage=Stage.TRAINING)
    over = ev.HandedOver(at=0.0, source="a", stage=Stage.TRAINING, route="direct")
    job = drive(job, [ev.HostAssigned(at=0.0, host="b"), over])
    assert job.leftovers == ("a",)
    job = drive(job, [ev.HostAssigned(at=0.0, host="a")])
    assert job.leftovers == () and recover(job) == (fx.HandOver(job=job.id, host="a", source="b"),)


def test_what_a_job_left_elsewhere_goes_once_its_results_are_collected() -> None:
    job = new_job(
        host="h", stage=Stage.SPLAT_EXPORT, step=Step.COLLECT, state=JobState.RUNNING,
        leftovers=("a",),
    )  # fmt: skip
    done, effects = step(job, ev.ResultsCollected(at=0.0, left_on=("a", "dead", "h")))
    assert done.leftovers == ("a", "dead")
    removing = tuple(fx.ReclaimLeftovers(job=job.id, host=host) for host in ("a", "dead"))
    assert effects[1:] == removing
    assert recover(done)[1:] == removing


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (Stage.TRAINING, (Step.TRANSFER, "big", Stage.TRAINING, "h")),
        (Stage.COLMAP_RECONSTRUCTION, (Step.TRANSFER, "big", Stage.COLMAP_RECONSTRUCTION, "h")),
        (Stage.FRAME_EXTRACTION, (Step.PLACE, None, Stage.VALIDATION, None)),
    ],
)
def test_a_cancelled_handoff_can_be_taken_up_again(
    stage: Stage, expected: tuple[Step, str | None, Stage, str | None]
) -> None:
    job = new_job(host="h", state=JobState.RUNNING, stage=Stage.TRAINING)
    job = drive(job, [ev.HostAssigned(at=0.0, host="big"), ev.CancelRequested(at=0.0)])
    assert recover(job) == (fx.PlanStitches(job=job.id, acquisition="dive"),)
    again, _ = step(job, ev.ReleaseRequested(at=0.0, stage=stage))
    assert (again.step, again.host, again.stage, again.origin) == expected


def test_recovery_issues_again_what_was_under_way() -> None:
    running = at_run(Stage.METADATA_EXTRACTION)
    assert recover(running) == (
        fx.FollowAttempt(job=running.id, attempt=1),
        fx.ReclaimInputs(job=running.id, host="h"),
    )
    extracting = at_run(Stage.FRAME_EXTRACTION)
    assert recover(extracting) == (fx.FollowAttempt(job=extracting.id, attempt=1),)
    assert recover(new_job()) == ()


def test_a_late_reply_of_the_host_it_left_says_nothing_about_the_new_one() -> None:
    job = at_run(Stage.VALIDATION)
    job, effects = step(job, failed(job, Reason.HOST_UNREACHABLE))
    leftovers = fx.ReclaimLeftovers(job=job.id, host="h")
    assert effects == (fx.ReclaimInputs(job=job.id, host="h"), leftovers)
    job = drive(job, [ev.HostAssigned(at=0.0, host="new"), ev.InputsReady(at=0.0)])
    late = ev.InputsReclaimed(at=0.0, host="h", removed_bytes=9, freed_bytes=0)
    assert drive(job, [late]).inputs_on_host
