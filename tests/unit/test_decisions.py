"""Which of an operator's decisions about pairs count, and what a stitch makes of them."""

from __future__ import annotations

import dataclasses

import pytest

from dispatcher.core.decisions import Decision, Verdict, in_force, why_not
from dispatcher.core.model import Job, JobKind, JobState, Stage
from dispatcher.core.plan import StitchLevel
from dispatcher.requests import decided, refused
from dispatcher.stitching import stitch_view
from dispatcher.store.rows import Request, Stitch

MEMBERS = ("a1", "a2", "a3")
POINT = ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0))


def said(number: int, verdict: Verdict, source: str, target: str) -> Decision:
    return Decision(id=number, at=1.0, by="ann", verdict=verdict, source=source, target=target)


def test_the_last_word_about_a_pair_counts_whichever_member_is_named_first() -> None:
    reject = said(1, Verdict.REJECT, "a1", "a2")
    approve = said(2, Verdict.APPROVE, "a2", "a1")
    other = said(3, Verdict.REJECT, "a2", "a3")
    assert in_force([other, approve, reject], MEMBERS) == (approve, other)
    assert in_force([reject, said(4, Verdict.WITHDRAW, "a1", "a2")], MEMBERS) == ()


def test_decisions_about_other_stitches_do_not_count() -> None:
    assert in_force([said(1, Verdict.REJECT, "a1", "b1")], MEMBERS) == ()


def test_what_no_stitch_could_take_is_said() -> None:
    assert why_not(said(1, Verdict.APPROVE, "a1", "a3"), MEMBERS) == ""
    assert "no member" in why_not(said(1, Verdict.APPROVE, "a1", "b1"), MEMBERS)
    assert "itself" in why_not(said(1, Verdict.REJECT, "a1", "a1"), MEMBERS)
    pin = said(1, Verdict.PIN, "a1", "a2")
    assert "3 are needed" in why_not(dataclasses.replace(pin, points=(POINT, POINT)), MEMBERS)
    assert why_not(dataclasses.replace(pin, points=(POINT,) * 3), MEMBERS) == ""


def request(kind: str, state: str = "done", **more: object) -> Request:
    args = {"by": "ann", "source": "a1", "target": "a2", "registrations": ["x", "y"], **more}
    return Request(id=7, kind=kind, job="s", args=args, created_at=5.0, state=state)


def test_what_was_asked_and_accepted_is_a_decision() -> None:
    points = [[[0, 1, 2], [3, 4, 5]]]
    (found,) = decided(
        [request("pin", points=points), request("cancel"), request("pin", "refused")]
    )
    assert (found.id, found.at, found.by, found.verdict) == (7, 5.0, "ann", Verdict.PIN)
    assert found.points == (((0.0, 1.0, 2.0), (3.0, 4.0, 5.0)),)
    assert found.registrations == ("x", "y")


def test_only_a_stitch_takes_decisions() -> None:
    job = Job(id="s", kind=JobKind.STITCH, acquisition="d", name="s", auv="a", created_at=0.0,
              stage=Stage.STITCH)  # fmt: skip
    asked = request("reject", "pending")
    assert refused(asked, job, silent=(), at=1.0) == ""
    segment = dataclasses.replace(job, kind=JobKind.RECONSTRUCT, stage=Stage.TRAINING)
    assert refused(asked, segment, silent=(), at=1.0) == "it is no stitch"


@pytest.mark.parametrize(("made_with", "outdated"), [((), True), ((7,), False), ((6,), True)])
def test_a_stitch_is_outdated_by_decisions_it_was_not_made_with(
    made_with: tuple[int, ...], outdated: bool
) -> None:
    stitch = Stitch(id="s", acquisition="d", level=StitchLevel.PER_AUV, auv="a", version=1,
                    members=MEMBERS, state=JobState.HELD, created_at=0.0, job="s",
                    decisions=made_with)  # fmt: skip
    decisions = [said(7, Verdict.REJECT, "a1", "a2"), said(8, Verdict.REJECT, "b1", "b2")]
    assert stitch_view(stitch, decisions).outdated is outdated
