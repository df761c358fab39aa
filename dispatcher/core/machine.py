"""The life of one job: `step(job, event) -> (job, effects)`, a literal transition table.

Pure: the shell performs the effects and feeds what happened back as events. A pair that the
table lacks is a defect of the shell, or an operator's request that makes no sense, and raises
IllegalTransition with the job's story. What has been overtaken (by a cancel, by a newer attempt)
raises StaleEvent and is dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

from dispatcher.core import effects as fx
from dispatcher.core import events as ev
from dispatcher.core import model as m
from dispatcher.core.effects import Effect
from dispatcher.core.endings import after_failure, cancelled, settle_bad
from dispatcher.core.events import Event
from dispatcher.core.model import Job, JobState, Reason, Stage, Step
from dispatcher.core.moves import (
    bring,
    handed_over,
    handoff_abandoned,
    host_assigned,
    leftovers_reclaimed,
    needs_inputs,
)
from dispatcher.core.reclaiming import gone
from dispatcher.core.retry import decide
from dispatcher.core.transition import NO_REASON, IllegalTransition, Outcome, StaleEvent, story
from dispatcher.core.work_size import MAX_SHRINK, MAX_STRIDE, measured, reduced

__all__ = [
    "LATE",
    "LIVE_STEPS",
    "TRANSITIONS",
    "IllegalTransition",
    "StaleEvent",
    "recover",
    "step",
    "story",
]

# Steps in which an attempt is, or may be, alive: exactly then the job holds a reservation.
LIVE_STEPS: Final = frozenset({Step.START, Step.RUN, Step.CANCEL})


def step(job: Job, event: Event) -> Outcome:
    """The job after `event`, and what the shell must do now.

    Raises IllegalTransition and StaleEvent. The revision is left to the store.
    """
    if isinstance(event, ev.AttemptStarted | ev.AttemptSucceeded | ev.AttemptFailed) and (
        event.attempt != job.attempt or job.reservation is None
    ):
        raise StaleEvent(job, event)
    key = (job.step, type(event))
    if key in LATE:
        raise StaleEvent(job, event)
    transition = TRANSITIONS.get(key)
    if transition is None:
        raise IllegalTransition(job, event)
    return transition(job, event)


def recover(job: Job) -> tuple[Effect, ...]:
    """Effects to issue again after a restart of the dispatcher; each is idempotent."""
    effects: list[Effect] = []
    host = job.host or ""
    match job.step:
        case Step.TRANSFER:
            effects.append(bring(job))
        case Step.START:
            effects.append(fx.StartAttempt(job=job.id, attempt=job.attempt))
        case Step.RUN:
            effects.append(fx.FollowAttempt(job=job.id, attempt=job.attempt))
        case Step.COLLECT:
            effects.append(fx.CollectResults(job=job.id, host=host))
        case Step.CANCEL:
            effects.append(fx.CancelAttempt(job=job.id, attempt=job.attempt))
            effects.append(fx.FollowAttempt(job=job.id, attempt=job.attempt))
        case Step.REST:
            effects.append(fx.PlanStitches(job=job.id, acquisition=job.acquisition))
        case Step.PLACE:
            pass
    if job.inputs_on_host and job.host is not None and _inputs_useless(job):
        effects.append(fx.ReclaimInputs(job=job.id, host=job.host))
    effects += [fx.ReclaimLeftovers(job=job.id, host=name) for name in job.leftovers]
    return tuple(effects)


def _inputs_useless(job: Job) -> bool:
    return (
        job.state is JobState.CANCELLED
        or job.step is Step.COLLECT
        or job.stage is Stage.COMPLETED
        or not needs_inputs(job.kind, job.stage)
    )


# --- placement and transfer ---


def _inputs_ready(job: Job, _event: Any) -> Outcome:
    ready = dataclasses.replace(job, inputs_on_host=True, reclaimed=(), not_before=0.0, **NO_REASON)
    return dataclasses.replace(ready, step=Step.PLACE), ()


def _transfer_failed(job: Job, event: Any) -> Outcome:
    return after_failure(job, event, Step.TRANSFER, (bring(job),))


def _plan_reduced(job: Job, event: Any) -> Outcome:
    known, wanted = (job.shrink, job.stride), (event.shrink, event.stride)
    smaller = job.shrink <= event.shrink <= MAX_SHRINK and job.stride <= event.stride <= MAX_STRIDE
    if not smaller or known == wanted:
        raise StaleEvent(job, event)  # decided on an older snapshot
    return reduced(job, shrink=event.shrink, stride=event.stride), ()


def _unplaceable(job: Job, event: Any) -> Outcome:
    """The shell may not wait for a host any longer (`dispatch --once`): hold, with the reason."""
    return settle_bad(job, event, JobState.HELD, decide(job, event.reason))


def _stage_placed(job: Job, event: Any) -> Outcome:
    reservation = event.reservation
    promised = (reservation.job, reservation.host, reservation.attempt)
    if promised != (job.id, job.host, job.attempt + 1):
        raise StaleEvent(job, event)  # decided on an older snapshot
    state = JobState.EXTRACTING if job.stage in m.EXTRACTING_STAGES else JobState.RUNNING
    started = dataclasses.replace(
        job,
        state=state,
        step=Step.START,
        attempt=reservation.attempt,
        reservation=reservation,
        not_before=0.0,
        **NO_REASON,
    )
    return started, (fx.StartAttempt(job=job.id, attempt=reservation.attempt),)


# --- attempts ---


def _attempt_started(job: Job, event: Any) -> Outcome:
    follow = fx.FollowAttempt(job=job.id, attempt=event.attempt)
    return dataclasses.replace(job, step=Step.RUN), (follow,)


def _attempt_succeeded(before: Job, event: Any) -> Outcome:
    job = measured(before, event.metrics)
    stages = m.stages_of(job.kind)
    position = stages.index(job.stage)
    effects: list[Effect] = []
    host = job.host or ""
    if position + 1 < len(stages):
        after = dataclasses.replace(
            job, step=Step.PLACE, stage=stages[position + 1], reservation=None
        )
    else:
        after = dataclasses.replace(job, step=Step.COLLECT, reservation=None)
        effects.append(fx.CollectResults(job=job.id, host=host))
    if job.inputs_on_host and job.stage in (Stage.FRAME_EXTRACTION, Stage.STITCH):
        effects.append(fx.ReclaimInputs(job=job.id, host=host))
    return after, tuple(effects)


def _attempt_failed(job: Job, event: Any) -> Outcome:
    return after_failure(job, event, Step.PLACE, ())


# --- inputs and results ---


def _inputs_reclaimed(job: Job, event: Any) -> Outcome:
    # A late reply of a host the job has left says nothing about its present one.
    here = event.host == job.host
    return dataclasses.replace(job, inputs_on_host=job.inputs_on_host and not here), ()


def _made_reclaimed(job: Job, event: Any) -> Outcome:
    if event.host != job.host:
        return job, ()
    kinds = dict.fromkeys((*job.reclaimed, *event.kinds))
    return dataclasses.replace(job, reclaimed=tuple(kinds)), ()


def _nothing_removed(job: Job, _event: Any) -> Outcome:
    return job, ()


def _results_collected(job: Job, event: Any) -> Outcome:
    elsewhere = (host for host in event.left_on if host != job.host)
    done = dataclasses.replace(
        job,
        state=JobState.DONE,
        step=Step.REST,
        stage=Stage.COMPLETED,
        not_before=0.0,
        leftovers=tuple(dict.fromkeys((*job.leftovers, *elsewhere))),
        **NO_REASON,
    )
    return done, (
        fx.PlanStitches(job=job.id, acquisition=job.acquisition),
        *(fx.ReclaimLeftovers(job=job.id, host=host) for host in done.leftovers),
    )


def _collect_failed(job: Job, event: Any) -> Outcome:
    return after_failure(
        job, event, Step.COLLECT, (fx.CollectResults(job=job.id, host=job.host or ""),)
    )


# --- the operator ---


def _cancel_now(job: Job, event: Any) -> Outcome:
    return cancelled(job, f"cancelled by {event.by}")


def _cancel_transfer(job: Job, event: Any) -> Outcome:
    # Part of the inputs may have arrived: say so, or nobody would remove it.
    arrived = dataclasses.replace(job, inputs_on_host=job.origin is None)
    return cancelled(arrived, f"cancelled by {event.by}")


def _cancel_attempt(job: Job, event: Any) -> Outcome:
    stopping = dataclasses.replace(
        job, step=Step.CANCEL, reason=Reason.CANCELLED, message=f"cancelled by {event.by}"
    )
    return stopping, (fx.CancelAttempt(job=job.id, attempt=job.attempt),)


def _cancel_held(job: Job, event: Any) -> Outcome:
    if job.state is not JobState.HELD:
        raise IllegalTransition(job, event, "it has ended already")
    return _cancel_now(job, event)


def _cancel_again(job: Job, _event: Any) -> Outcome:
    return job, ()


def _started_while_cancelling(job: Job, event: Any) -> Outcome:
    # The cancel may have reached the host before the start did.
    return job, (fx.CancelAttempt(job=job.id, attempt=event.attempt),)


def _cancel_ended(job: Job, _event: Any) -> Outcome:
    return cancelled(job, job.message)


def _released(job: Job, event: Any) -> Outcome:
    """Try again: where the work lies (or on its way from there) when only later stages are asked
    for, else from the first stage, because the source must be brought (and checked) again."""
    stages = m.stages_of(job.kind)
    wanted = event.stage or (job.stage if job.stage is not Stage.COMPLETED else stages[0])
    if wanted not in stages:
        raise IllegalTransition(job, event, f"a {job.kind} job has no stage {wanted}")
    if gone(job, wanted):
        wanted = stages[0]
    fresh = dataclasses.replace(
        job, state=JobState.CLAIMED, retries={}, not_before=0.0, avoid_hosts=(), **NO_REASON
    )
    fresh = dataclasses.replace(fresh, stage=wanted)
    if not needs_inputs(job.kind, wanted):
        if job.host is None and job.origin is not None:
            return dataclasses.replace(fresh, state=JobState.QUEUED, step=Step.PLACE), ()
        if job.origin is not None:
            return dataclasses.replace(fresh, step=Step.TRANSFER), (bring(fresh),)
        if job.host is not None:
            return dataclasses.replace(fresh, step=Step.PLACE), ()
    fresh = dataclasses.replace(fresh, origin=None)
    if job.host is not None and job.inputs_on_host:
        # Bytes that lie there would be left behind on any other host.
        again = dataclasses.replace(fresh, step=Step.TRANSFER, stage=stages[0])
        return again, (fx.TransferInputs(job=job.id, host=job.host),)
    return dataclasses.replace(
        fresh, state=JobState.QUEUED, step=Step.PLACE, stage=stages[0], host=None
    ), ()


def _priority_changed(job: Job, event: Any) -> Outcome:
    if job.state in m.TERMINAL:
        raise IllegalTransition(job, event, "it has ended already")
    return dataclasses.replace(job, priority=event.priority), ()


Transition = Callable[[Job, Any], Outcome]
TRANSITIONS: Final[dict[tuple[Step, type[Event]], Transition]] = {
    (Step.PLACE, ev.HostAssigned): host_assigned,
    (Step.PLACE, ev.StagePlaced): _stage_placed,
    (Step.PLACE, ev.PlanReduced): _plan_reduced,
    (Step.PLACE, ev.TransferFailed): _unplaceable,
    (Step.PLACE, ev.CancelRequested): _cancel_now,
    (Step.TRANSFER, ev.InputsReady): _inputs_ready,
    (Step.TRANSFER, ev.HandedOver): handed_over,
    (Step.TRANSFER, ev.HandoffAbandoned): handoff_abandoned,
    (Step.TRANSFER, ev.TransferFailed): _transfer_failed,
    (Step.TRANSFER, ev.CancelRequested): _cancel_transfer,
    (Step.START, ev.AttemptStarted): _attempt_started,
    (Step.START, ev.AttemptSucceeded): _attempt_succeeded,
    (Step.START, ev.AttemptFailed): _attempt_failed,
    (Step.START, ev.CancelRequested): _cancel_attempt,
    (Step.RUN, ev.AttemptSucceeded): _attempt_succeeded,
    (Step.RUN, ev.AttemptFailed): _attempt_failed,
    (Step.RUN, ev.CancelRequested): _cancel_attempt,
    (Step.COLLECT, ev.ResultsCollected): _results_collected,
    (Step.COLLECT, ev.TransferFailed): _collect_failed,
    (Step.COLLECT, ev.CancelRequested): _cancel_now,
    (Step.CANCEL, ev.CancelConfirmed): _cancel_ended,
    (Step.CANCEL, ev.AttemptStarted): _started_while_cancelling,
    (Step.CANCEL, ev.AttemptSucceeded): _cancel_ended,
    (Step.CANCEL, ev.AttemptFailed): _cancel_ended,
    (Step.CANCEL, ev.CancelRequested): _cancel_again,
    (Step.REST, ev.CancelRequested): _cancel_held,
    (Step.REST, ev.ReleaseRequested): _released,
    **{(at, ev.InputsReclaimed): _inputs_reclaimed for at in Step},
    **{(at, ev.LeftoversReclaimed): leftovers_reclaimed for at in Step},
    **{(at, ev.MadeReclaimed): _made_reclaimed for at in Step},
    **{(at, ev.InputsKept): _nothing_removed for at in Step},
    **{(at, ev.ReclaimFailed): _nothing_removed for at in Step},
    **{(at, ev.PriorityChanged): _priority_changed for at in Step},
}

# What a cancel, or a cancel and a release, has overtaken: replies to effects and decisions that
# were on their way.
LATE: Final[frozenset[tuple[Step, type[Event]]]] = frozenset(
    {
        *((at, ev.InputsReady) for at in Step if at is not Step.TRANSFER),
        *((at, ev.HandedOver) for at in Step if at is not Step.TRANSFER),
        *((at, ev.HandoffAbandoned) for at in Step if at is not Step.TRANSFER),
        *((at, ev.ResultsCollected) for at in Step if at is not Step.COLLECT),
        *((at, ev.CancelConfirmed) for at in Step if at is not Step.CANCEL),
        *((at, ev.TransferFailed) for at in (*LIVE_STEPS, Step.REST)),
        *((at, ev.HostAssigned) for at in (Step.TRANSFER, Step.REST)),
        *((at, ev.StagePlaced) for at in (Step.TRANSFER, Step.REST)),
        *((at, ev.PlanReduced) for at in Step if at is not Step.PLACE),
    }
)
