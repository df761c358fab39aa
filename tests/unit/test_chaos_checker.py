"""The checker of a drill: silent on a good log, and every invariant can be broken."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from dispatcher.chaos.checker import INVARIANTS, check
from dispatcher.chaos.evidence import (
    AttemptRow,
    EventRow,
    Evidence,
    HostAttempt,
    JobRow,
    LogPiece,
    Run,
)

STAGES = ("Validation", "FrameExtraction")
EVENT = {"kind": "progress", "fraction": 1.0, "message": "all"}
EVENTS = (json.dumps({"time": 1.0, "attempt": 1, **EVENT}) + "\n").encode()
LOG = b"one line\nanother line\n"


def record(**changes: Any) -> dict[str, Any]:
    values = {"events_bytes": len(EVENTS), "log_bytes": len(LOG), "outcome": {"ok": True}}
    return {**values, **changes}


def event(number: int, kind: str, attempt: int | None = None, **payload: Any) -> EventRow:
    return EventRow(
        id=number, kind=kind, job="a", attempt=attempt, host=None, source="dispatcher",
        payload=payload,
    )  # fmt: skip


@pytest.fixture
def good() -> Evidence:
    """Job a: two attempts on host h, then its inputs were removed; job bad was held."""
    attempts = [
        AttemptRow(
            job="a", attempt=n, stage=stage, host="h", state="succeeded", exit=record()
        )
        for n, stage in enumerate(STAGES, 1)
    ]  # fmt: skip
    return Evidence(
        jobs=(
            JobRow(id="a", kind="reconstruct", state="done"),
            JobRow(id="bad", kind="reconstruct", state="held", reason="x", message="why"),
        ),
        attempts=tuple(attempts),
        events=(
            event(1, "host_assigned", host="h"),
            event(2, "attempt_succeeded", 1),
            event(3, "attempt_succeeded", 2),
            event(4, "inputs_reclaimed", host="h", removed_bytes=10),
            *(
                EventRow(
                    id=4 + n, kind="progress", job="a", attempt=n, host="h", source="agent",
                    payload={"fraction": 1.0, "message": "all"},
                )
                for n in (1, 2)
            ),
        ),
        logs=tuple(
            LogPiece(job="a", attempt=n, position=at, data=LOG[at:end])
            for n in (1, 2)
            for at, end in ((0, 9), (9, len(LOG)))
        ),
        host_attempts=tuple(
            HostAttempt(host="h", job="a", attempt=n, events=EVENTS, log=LOG, exit=record())
            for n in (1, 2)
        ),
        runs=tuple(
            Run(
                host="h", job="a", attempt=n, stage=stage, pid=10 + n, began=float(n),
                alive_until=n + 0.5,
            )
            for n, stage in enumerate(STAGES, 1)
        ),
        expected_held=frozenset({"bad"}),
    )  # fmt: skip


def broken(evidence: Evidence) -> set[str]:
    return {finding.invariant for finding in check(evidence)}


def with_attempt(evidence: Evidence, number: int, **changes: Any) -> Evidence:
    rows = list(evidence.attempts)
    rows[number - 1] = replace(rows[number - 1], **changes)
    return replace(evidence, attempts=tuple(rows))


def with_host_attempt(evidence: Evidence, number: int, **changes: Any) -> Evidence:
    rows = list(evidence.host_attempts)
    rows[number - 1] = replace(rows[number - 1], **changes)
    return replace(evidence, host_attempts=tuple(rows))


def test_a_good_log_breaks_nothing(good: Evidence) -> None:
    assert check(good) == []


def test_an_attempt_that_ran_twice(good: Evidence) -> None:
    again = replace(good.runs[1], pid=99, host="other", began=9.0, alive_until=9.5)
    assert broken(replace(good, runs=(*good.runs, again))) == {"one_run_per_attempt"}


def test_an_attempt_nobody_committed(good: Evidence) -> None:
    stray = replace(good.runs[1], attempt=7, began=9.0, alive_until=9.5)
    assert broken(replace(good, runs=(*good.runs, stray))) == {"one_run_per_attempt"}


def test_two_attempts_alive_at_once(good: Evidence) -> None:
    first = replace(good.runs[0], alive_until=2.1)
    assert broken(replace(good, runs=(first, good.runs[1]))) == {"one_live_attempt_of_a_stage"}


def test_a_long_run_is_compared_with_every_later_one(good: Evidence) -> None:
    """Not only with its neighbour in time: 1 outlives 2 and meets 3."""
    rows = with_attempt(good, 1)
    third = replace(
        good.attempts[1], attempt=3, state="failed", reason="host_unreachable", exit=None
    )
    runs = (
        replace(good.runs[0], began=1.0, alive_until=9.0),
        replace(good.runs[1], attempt=1, pid=11, began=1.0, alive_until=1.0),
        replace(good.runs[1], attempt=3, began=8.0, alive_until=8.5),
    )
    evidence = replace(rows, attempts=(*rows.attempts, third), runs=runs)
    assert "one_live_attempt_of_a_stage" in broken(evidence)


@pytest.mark.parametrize(
    "pieces",
    [
        [(0, LOG[:9])],  # the end is missing
        [(0, LOG[:9]), (10, LOG[10:])],  # a byte in the middle is missing
        [(0, LOG[:9]), (5, LOG[5:])],  # some bytes twice
        [(0, LOG[::-1])],  # other bytes
    ],
)
def test_log_bytes_lost_or_doubled(good: Evidence, pieces: list[tuple[int, bytes]]) -> None:
    kept = [piece for piece in good.logs if piece.attempt != 2]
    new = [LogPiece(job="a", attempt=2, position=at, data=data) for at, data in pieces]
    assert broken(replace(good, logs=(*kept, *new))) == {"log_bytes_exactly_once"}


def test_an_attempt_cut_off_has_a_beginning_of_its_log(good: Evidence) -> None:
    cut = with_attempt(good, 1, exit=None, state="failed", reason="host_unreachable")
    logs = tuple(piece for piece in good.logs if (piece.attempt, piece.position) != (1, 9))
    assert check(replace(cut, logs=logs)) == []
    other = LogPiece(job="a", attempt=1, position=0, data=b"no such line")
    rest = tuple(piece for piece in logs if piece.attempt != 1)
    assert broken(replace(cut, logs=(other, *rest))) == {"log_bytes_exactly_once"}


def test_events_lost_or_doubled(good: Evidence) -> None:
    last = good.events[-1]
    assert broken(replace(good, events=good.events[:-1])) == {"events_exactly_once"}
    twice = (*good.events, replace(last, id=99))
    assert broken(replace(good, events=twice)) == {"events_exactly_once"}


def test_stored_events_of_a_directory_that_is_gone(good: Evidence) -> None:
    gone = replace(good, host_attempts=good.host_attempts[1:])
    assert broken(gone) == {
        "events_exactly_once", "log_bytes_exactly_once", "finished_work_is_harvested",
    }  # fmt: skip


def test_inputs_removed_before_the_frames_are_verified(good: Evidence) -> None:
    early = tuple(replace(e, id=0) if e.kind == "inputs_reclaimed" else e for e in good.events)
    assert broken(replace(good, events=early)) == {"inputs_kept_until_verified"}


def test_a_stage_that_missed_its_inputs(good: Evidence) -> None:
    missing = with_attempt(good, 1, state="failed", reason="input_missing")
    assert "inputs_kept_until_verified" in broken(missing)


def test_footage_that_changed(good: Evidence) -> None:
    assert broken(replace(good, lost_sources=("GX01.MP4",))) == {"inputs_kept_until_verified"}


def test_finished_work_taken_for_lost(good: Evidence) -> None:
    lost = with_attempt(good, 1, state="failed", reason="attempt_vanished")
    assert broken(lost) == {"finished_work_is_harvested"}


def test_a_success_the_host_knows_nothing_of(good: Evidence) -> None:
    unknown = with_host_attempt(good, 2, exit=None)
    assert broken(unknown) == {"finished_work_is_harvested"}
    harvested = with_host_attempt(good, 2, exit=None, result={"ok": True})
    assert check(harvested) == []


@pytest.mark.parametrize(
    ("state", "names"),
    [
        ("running", {"every_job_ends"}),
        ("held", {"every_job_ends", "only_named_jobs_are_held"}),
        ("error", {"every_job_ends", "only_named_jobs_are_held"}),
        ("cancelled", {"only_named_jobs_are_held"}),
    ],
)
def test_a_job_that_does_not_end_well(good: Evidence, state: str, names: set[str]) -> None:
    jobs = (replace(good.jobs[0], state=state), good.jobs[1])
    assert broken(replace(good, jobs=jobs)) == names


def test_a_job_that_was_impossible_and_is_done(good: Evidence) -> None:
    jobs = (good.jobs[0], replace(good.jobs[1], state="done"))
    assert broken(replace(good, jobs=jobs)) == {"only_named_jobs_are_held"}


def test_a_reservation_that_outlives_its_job(good: Evidence) -> None:
    assert broken(replace(good, reservations=(("a", 2),))) == {"no_reservation_leak"}


def test_a_process_left_behind(good: Evidence) -> None:
    assert broken(replace(good, processes_left=("h: pid 7: sleep",))) == {"no_process_left"}


def test_there_is_a_test_for_every_invariant() -> None:
    source = __import__("pathlib").Path(__file__).read_text()
    assert [name for name in INVARIANTS if f'"{name}"' not in source] == []
