"""Transitions of a job that gets a host, or another one, and takes along what it has made."""

from __future__ import annotations

import dataclasses
from typing import Any

from dispatcher.core import effects as fx
from dispatcher.core import model as m
from dispatcher.core.effects import Effect
from dispatcher.core.model import Job, JobState, Stage, Step
from dispatcher.core.transition import NO_REASON, Outcome, StaleEvent


def needs_inputs(kind: m.JobKind, stage: Stage) -> bool:
    """Whether `stage` still reads the source bytes (videos, or the members of a stitch)."""
    return kind is m.JobKind.STITCH or stage in (Stage.VALIDATION, Stage.FRAME_EXTRACTION)


def outputs_at(job: Job) -> str | None:
    """The host with all that the job's next stages read; None: that is the source itself."""
    return None if needs_inputs(job.kind, job.stage) else job.origin or job.host


def bring(job: Job) -> Effect:
    """What a job at Step.TRANSFER waits for."""
    host = job.host or ""
    if job.origin is not None:
        return fx.HandOver(job=job.id, host=host, source=job.origin)
    return fx.TransferInputs(job=job.id, host=host)


def leave_behind(job: Job) -> tuple[Effect, ...]:
    """Source bytes on a host the job leaves are of no more use there."""
    if job.inputs_on_host and job.host is not None:
        return (fx.ReclaimInputs(job=job.id, host=job.host),)
    return ()


def host_assigned(job: Job, event: Any) -> Outcome:
    """A first host, or another: the job goes on there with what its finished stages made, or, as
    long as it reads the source, starts afresh."""
    if event.host == job.host:
        raise StaleEvent(job, event)
    source = outputs_at(job)
    moved = dataclasses.replace(
        job,
        state=JobState.CLAIMED,
        step=Step.TRANSFER,
        stage=m.stages_of(job.kind)[0] if source is None else job.stage,
        host=event.host,
        assigned_at=event.at,
        origin=source,
        leftovers=tuple(host for host in job.leftovers if host != event.host),
        inputs_on_host=False,
        not_before=0.0,
    )
    return moved, (*leave_behind(job), bring(moved))


def handed_over(job: Job, event: Any) -> Outcome:
    """From now on the copy on the host it left is of no use."""
    if event.source != job.origin:
        raise StaleEvent(job, event)
    there = dataclasses.replace(
        job, step=Step.PLACE, stage=event.stage, origin=None, not_before=0.0, **NO_REASON
    )
    return (there, ()) if event.source == job.host else abandon_copy(there, event.source)


def handoff_abandoned(job: Job, event: Any) -> Outcome:
    if event.source != job.origin:
        raise StaleEvent(job, event)
    afresh = dataclasses.replace(
        job, stage=m.stages_of(job.kind)[0], origin=None, not_before=0.0, **NO_REASON
    )
    return afresh, (bring(afresh),)


def abandon_copy(job: Job, host: str) -> Outcome:
    """Have removed what lies on `host`: all of it lies on another host, too."""
    left = dataclasses.replace(
        job, leftovers=(*(name for name in job.leftovers if name != host), host)
    )
    return left, (fx.ReclaimLeftovers(job=job.id, host=host),)


def leftovers_reclaimed(job: Job, event: Any) -> Outcome:
    left = tuple(host for host in job.leftovers if host != event.host)
    return dataclasses.replace(job, leftovers=left), ()
