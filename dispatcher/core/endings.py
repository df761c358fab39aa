"""What becomes of a job when something failed, or when it is cancelled."""

from __future__ import annotations

import dataclasses
from typing import Any

from dispatcher.core import effects as fx
from dispatcher.core import model as m
from dispatcher.core.effects import Effect
from dispatcher.core.model import Job, JobState, Reason, Step
from dispatcher.core.moves import abandon_copy, leave_behind, outputs_at
from dispatcher.core.retry import Decision, decide
from dispatcher.core.transition import Outcome


def after_failure(job: Job, event: Any, again: Step, effects: tuple[Effect, ...]) -> Outcome:
    """Apply the decision: go on at step `again` on this host, go elsewhere, or settle."""
    decision = decide(job, event.reason, blame=getattr(event, "blame", None))
    if decision.verdict is m.Verdict.HOLD:
        return settle_bad(job, event, JobState.HELD, decision)
    if decision.verdict is m.Verdict.FAIL:
        return settle_bad(job, event, JobState.ERROR, decision)
    failed = dataclasses.replace(
        job,
        step=again,
        reservation=None,
        need_mib=decision.need_mib,
        shrink=decision.shrink,
        need_ram_mib=decision.need_ram_mib,
        stride=decision.stride,
        retries={**job.retries, decision.layer.value: decision.retries_used + 1},
        not_before=event.at + decision.delay_s,
        reason=event.reason,
        message=event.message,
        advice=event.advice or decision.advice,
    )
    # Results lie on one host only, so collecting them never goes elsewhere.
    if not decision.elsewhere or again is Step.COLLECT:
        return failed, effects
    avoid = job.avoid_hosts
    if job.host is not None and job.host not in avoid:
        avoid = (*avoid, job.host)
    source = outputs_at(job)
    elsewhere = dataclasses.replace(
        failed,
        state=JobState.QUEUED,
        step=Step.PLACE,
        stage=m.stages_of(job.kind)[0] if source is None else job.stage,
        host=None,
        origin=source,
        inputs_on_host=False,
        avoid_hosts=avoid,
    )
    if job.host is None or source == job.host:
        return elsewhere, leave_behind(job)
    # As far as it had come: inputs, a copy of what was made elsewhere, half-made frames.
    left, effects = abandon_copy(elsewhere, job.host)
    return left, (*leave_behind(job), *effects)


def settle_bad(job: Job, event: Any, state: JobState, decision: Decision) -> Outcome:
    message = event.message or str(event.reason)
    if decision.retries_used:
        message += f" (after {decision.retries_used} retries for {decision.layer} faults)"
    advice = (event.advice or decision.advice).rstrip(". ")
    settled = dataclasses.replace(
        job,
        state=state,
        step=Step.REST,
        reservation=None,
        not_before=0.0,
        reason=event.reason,
        message=message,
        advice=f"{advice}; then: cosma job retry {job.id}",
    )
    return settled, (fx.PlanStitches(job=job.id, acquisition=job.acquisition),)


def cancelled(job: Job, message: str) -> Outcome:
    after = dataclasses.replace(
        job,
        state=JobState.CANCELLED,
        step=Step.REST,
        reservation=None,
        not_before=0.0,
        reason=Reason.CANCELLED,
        message=message,
        advice=f"to run it after all: cosma job retry {job.id}",
    )
    effects: list[Effect] = [fx.PlanStitches(job=job.id, acquisition=job.acquisition)]
    if job.inputs_on_host and job.host is not None:
        effects.append(fx.ReclaimInputs(job=job.id, host=job.host))
    return after, tuple(effects)
