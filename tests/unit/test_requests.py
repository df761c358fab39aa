"""What an operator asks for is refused exactly where the machine refuses it, in plain words."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dispatcher.core.machine import IllegalTransition, step
from dispatcher.core.model import TERMINAL, Job, JobKind, JobState, Stage, Step
from dispatcher.requests import (
    ABANDON,
    CANCEL,
    PRIORITY,
    RETRY,
    event_of_request,
    refused,
)
from dispatcher.store.rows import Request
from tests.unit.farms import NOW, at, job, running

RUNNING = running("j", Stage.FRAME_EXTRACTION)
STANDS = [
    job("j"),
    *(at("j", Stage.TRAINING, step=one) for one in Step if one is not Step.REST),
    *(at("j", Stage.TRAINING, step=Step.REST, state=state)
      for state in (*TERMINAL, JobState.HELD)),
]  # fmt: skip


def request(kind: str, **args: Any) -> Request:
    return Request(id=1, kind=kind, job="j", args=args, created_at=NOW, state="pending")


@pytest.mark.parametrize("asked", [request(CANCEL), request(RETRY), request(PRIORITY, priority=3)])
def test_it_is_refused_where_the_machine_refuses_it(asked: Request) -> None:
    told = set()
    for one in STANDS:
        # One that is not at rest has been promised something, as far as that matters here.
        stands = (
            dataclasses.replace(one, reservation=RUNNING.reservation)
            if one.step in (Step.START, Step.RUN, Step.CANCEL)
            else one
        )
        why = refused(asked, stands, silent=(), at=NOW)
        try:
            step(stands, event_of_request(asked, at=NOW))
        except IllegalTransition:
            assert why and "Requested(" not in why and "step" not in why
            told.add(why)
        else:
            assert why == ""
    assert told


@pytest.mark.parametrize(
    ("asked", "stands", "words"),
    [
        (request(CANCEL), at("j", Stage.COMPLETED, step=Step.REST, state=JobState.DONE),
         "it has ended: done"),
        (request(RETRY), RUNNING, "it is running (FrameExtraction on gpu-a); only a job that is"),
        (request(RETRY), dataclasses.replace(RUNNING, step=Step.CANCEL), "it is being cancelled"),
        (request(RETRY, stage="Trainning"), RUNNING, "does not understand it"),
        (request("sing"), RUNNING, "does not understand it"),
        (request(ABANDON), RUNNING, "gpu-a is not silent; end its attempt: cosma job cancel j"),
        (request(ABANDON), job("j"), "there is no attempt of it to give up: it is queued"),
        (request(CANCEL), None, "no such job"),
    ],
)  # fmt: skip
def test_a_refusal_says_why_and_what_to_do(asked: Request, stands: Job | None, words: str) -> None:
    assert words in refused(asked, stands, silent=("gpu-b",), at=NOW)


def test_an_attempt_on_a_silent_host_can_be_given_up() -> None:
    assert refused(request(ABANDON), RUNNING, silent=("gpu-a",), at=NOW) == ""


def test_a_priority_that_no_database_holds_is_refused_and_stops_nobody() -> None:
    """It may have been written by an earlier version."""
    asked = request(PRIORITY, priority=10**20)
    why = refused(asked, job("one"), silent=(), at=NOW)
    assert "a priority lies between -1000000 and 1000000" in why
    assert not refused(request(PRIORITY, priority=-(10**6)), job("one"), silent=(), at=NOW)


def test_a_stage_that_its_kind_of_job_does_not_have() -> None:
    stitch = at("j", Stage.STITCH, kind=JobKind.STITCH, step=Step.REST)
    held = dataclasses.replace(stitch, state=JobState.HELD)
    assert refused(request(RETRY, stage="Training"), held, silent=(), at=NOW)
