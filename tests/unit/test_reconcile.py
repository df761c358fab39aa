"""A host's attempts against the database: absence proves nothing, numbers do."""

from __future__ import annotations

import dataclasses

import pytest

from dispatcher.core.model import Job, JobKind, JobState, Stage, Step
from dispatcher.core.reconcile import Finding, Kind, Seen, Shown, reconcile

JOB = Job(
    id="j", kind=JobKind.RECONSTRUCT, acquisition="dive", name="s", auv="x", created_at=0.0,
    state=JobState.RUNNING, step=Step.RUN, stage=Stage.TRAINING, host="h", attempt=6,
)  # fmt: skip


def seen(attempt: int, shown: Shown = Shown.RUNNING, **changes: str) -> Seen:
    return Seen(**{"acquisition": "dive", "job": "j", **changes}, attempt=attempt, shown=shown)


def found(job: Job | None, *items: Seen, after: Job | None = None) -> list[Kind]:
    before = {} if job is None else {job.id: job}
    now = before if after is None else {after.id: after}
    return [item.kind for item in reconcile("h", before, items, now)]


@pytest.mark.parametrize(
    ("shown", "kind"),
    [
        (Shown.RUNNING, Kind.ADOPTED),
        (Shown.FINISHED, Kind.HARVESTED),
        (Shown.VANISHED, Kind.VANISHED),
    ],
)
@pytest.mark.parametrize("step", [Step.START, Step.RUN, Step.CANCEL])
def test_the_live_attempt_is_taken_as_the_host_shows_it(
    step: Step, shown: Shown, kind: Kind
) -> None:
    assert found(dataclasses.replace(JOB, step=step), seen(6, shown)) == [kind]


def test_earlier_attempts_that_have_ended_are_history() -> None:
    history = [seen(number, Shown.FINISHED) for number in range(1, 6)]
    assert found(JOB, *history, seen(6)) == [Kind.ADOPTED]
    assert found(JOB, seen(3, Shown.VANISHED), seen(6)) == [Kind.ADOPTED]


def test_a_superseded_attempt_that_runs_is_to_be_cancelled() -> None:
    assert found(JOB, seen(5), seen(6)) == [Kind.SUPERSEDED, Kind.ADOPTED]
    elsewhere = dataclasses.replace(JOB, host="other")
    assert found(elsewhere, seen(6)) == [Kind.SUPERSEDED]
    held = dataclasses.replace(JOB, state=JobState.HELD, step=Step.REST)
    assert found(held, seen(6)) == [Kind.SUPERSEDED]


def test_what_the_database_does_not_know_is_left_alone_whatever_it_does() -> None:
    for shown in Shown:
        assert found(JOB, seen(6), seen(1, shown, job="stranger"))[1:] == [Kind.UNKNOWN]
        assert found(JOB, seen(6), seen(6, shown, acquisition="other"))[1:] == [Kind.UNKNOWN]
        assert found(JOB, seen(6), seen(7, shown))[1:] == [Kind.UNKNOWN]


def test_an_acknowledged_attempt_that_is_not_shown_is_absent_not_dead() -> None:
    assert found(JOB) == [Kind.ABSENT]
    assert found(JOB, seen(5, Shown.FINISHED)) == [Kind.ABSENT]
    # Not acknowledged yet: it may be on its way.
    assert found(dataclasses.replace(JOB, step=Step.START)) == []
    assert found(dataclasses.replace(JOB, host="other")) == []


def test_a_job_that_moved_on_while_the_host_was_asked_is_not_absent() -> None:
    later = dataclasses.replace(JOB, step=Step.PLACE, stage=Stage.PLY_EXPORT)
    assert found(JOB, after=later) == []
    next_attempt = dataclasses.replace(JOB, attempt=7)
    assert found(JOB, after=next_attempt) == []


def test_findings_say_where_the_job_is() -> None:
    (finding,) = reconcile("h", {}, [seen(6)], {"j": dataclasses.replace(JOB, host="other")})
    assert finding == Finding(
        kind=Kind.SUPERSEDED,
        job="j",
        attempt=6,
        acquisition="dive",
        message="still runs on h; the job is at attempt 6, running on other",
    )
