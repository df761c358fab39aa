"""Which stitches are planned, and that none is planned twice."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.model import SETTLED, JobState
from dispatcher.core.plan import (
    SegmentView,
    Sooner,
    StitchLevel,
    StitchPlan,
    StitchView,
    plan_stitches,
    stitch_id,
)

DONE, HELD, RUNNING = JobState.DONE, JobState.HELD, JobState.RUNNING


def seg(job: str, state: JobState = DONE) -> SegmentView:
    return SegmentView(job=job, auv=job[0], name=job, state=state)


def made(plan: StitchPlan, state: JobState = DONE) -> StitchView:
    return StitchView(
        id=plan.id, level=plan.level, auv=plan.auv, members=plan.members, state=state,
        version=plan.version,
    )  # fmt: skip


def test_an_auv_is_stitched_when_all_its_segments_have_settled() -> None:
    assert plan_stitches("dive", [seg("a1"), seg("a2", RUNNING)], []) == ()
    (plan,) = plan_stitches("dive", [seg("a2"), seg("a1"), seg("b1", RUNNING)], [])
    assert plan == StitchPlan(
        id="dive-stitch-a-v1", level=StitchLevel.PER_AUV, auv="a", members=("a1", "a2"),
        passthrough=False, version=1,
    )  # fmt: skip


def test_bad_segments_are_left_out_and_a_single_good_one_passes_through() -> None:
    (plan,) = plan_stitches("dive", [seg("a1"), seg("a2", HELD), seg("a3", JobState.ERROR)], [])
    assert plan.passthrough and plan.members == ("a1",)
    assert plan_stitches("dive", [seg("a1", HELD)], []) == ()


def test_a_quorum_makes_a_first_version_and_the_end_makes_the_next() -> None:
    half = Sooner(quorum=0.5)
    few = [seg("a1"), seg("a2", RUNNING), seg("a3", RUNNING), seg("a4", HELD)]
    assert plan_stitches("dive", few, [], half) == ()  # one alone
    enough = [seg("a1"), seg("a2"), seg("a3", RUNNING), seg("a4", HELD)]
    assert plan_stitches("dive", enough, []) == ()
    (first,) = plan_stitches("dive", enough, [], half)
    assert (first.version, first.members) == (1, ("a1", "a2"))
    more = [seg("a1"), seg("a2"), seg("a3"), seg("a4"), seg("a5", RUNNING)]
    assert plan_stitches("dive", more, [made(first)], half) == ()  # not one for each
    (last,) = plan_stitches("dive", [*more[:4], seg("a5")], [made(first)], half)
    assert (last.version, last.members) == (2, ("a1", "a2", "a3", "a4", "a5"))


def test_a_deadline_counts_from_the_last_segment_that_came() -> None:
    rule = Sooner(deadline_s=100.0)
    three = [
        dataclasses.replace(seg(job, state), created_at=at)
        for job, state, at in (("a1", DONE, 10.0), ("a2", DONE, 20.0), ("a3", RUNNING, 50.0))
    ]
    assert plan_stitches("dive", three, [], rule, 149.0) == ()
    (first,) = plan_stitches("dive", three, [], rule, 150.0)
    assert first.members == ("a1", "a2")
    assert plan_stitches("dive", three, [made(first)], rule, 999.0) == ()
    # Vehicles are joined at the end only.
    both = [*three, seg("b1"), seg("b2")]
    plans = plan_stitches("dive", both, [], rule, 150.0)
    assert [plan.auv for plan in plans] == ["a", "b"]
    assert plan_stitches("dive", both, [made(p) for p in plans], rule, 999.0) == ()


def test_the_auvs_are_joined_once_both_are_done() -> None:
    segments = [seg("a1"), seg("a2"), seg("b1"), seg("b2")]
    first, second = plan_stitches("dive", segments, [])
    active = [made(first), made(second, RUNNING)]
    assert plan_stitches("dive", segments, active) == ()
    both = [made(first), made(second)]
    (cross,) = plan_stitches("dive", segments, both)
    assert (cross.id, cross.level, cross.auv) == ("dive-stitch-cross-v1", "cross_auv", None)
    assert cross.members == (first.id, second.id) and not cross.passthrough
    assert plan_stitches("dive", segments, [*both, made(cross, HELD)]) == ()
    (again,) = plan_stitches("dive", segments, [*both, made(cross, JobState.CANCELLED)])
    assert again.id == "dive-stitch-cross-v2"


def test_an_auv_still_at_work_or_held_decides_whether_the_others_are_joined() -> None:
    segments = [seg("a1"), seg("b1"), seg("c1", RUNNING)]
    plans = plan_stitches("dive", segments, [])
    assert plan_stitches("dive", segments, [made(p) for p in plans]) == ()
    segments[2] = seg("c1", HELD)
    (cross,) = plan_stitches("dive", segments, [made(p) for p in plans])
    assert cross.members == ("dive-stitch-a-v1", "dive-stitch-b-v1")
    assert plan_stitches("dive", segments, [made(plans[0]), made(plans[1], HELD)]) == ()


def test_a_late_segment_makes_a_new_version_of_all_it_belongs_to() -> None:
    early = [seg("a1"), seg("a2", HELD), seg("b1")]
    stitches = [made(p) for p in plan_stitches("dive", early, [])]
    stitches += [made(p) for p in plan_stitches("dive", early, stitches)]
    late = [seg("a1"), seg("a2"), seg("b1")]
    (renewed,) = plan_stitches("dive", late, stitches)
    assert renewed.id == "dive-stitch-a-v2" and renewed.members == ("a1", "a2")
    stitches.append(made(renewed))
    (cross,) = plan_stitches("dive", late, stitches)
    assert cross.version == 2 and cross.members == ("dive-stitch-a-v2", "dive-stitch-b-v1")


def test_ids_are_safe_and_never_mix_an_auv_with_the_whole() -> None:
    assert "/" not in stitch_id("dive", "a/b", 1)
    names = ["cross", None, "a b", "a-b", "a/b"]
    assert len({stitch_id("dive", name, 1) for name in names}) == len(names)


@given(
    states=st.dictionaries(
        st.sampled_from(["a1", "a2", "b1", "b2", "c1"]), st.sampled_from(JobState)
    ),
    ends=st.lists(st.sampled_from(sorted(SETTLED)), min_size=1, max_size=8),
)
def test_planning_ends_and_never_repeats_itself(
    states: dict[str, JobState], ends: list[JobState]
) -> None:
    segments = [seg(job, state) for job, state in states.items()]
    stitches: list[StitchView] = []
    for turn in range(20):
        plans = plan_stitches("dive", segments, stitches)
        assert plans == plan_stitches("dive", segments, stitches)
        if not plans:
            break
        assert not {p.id for p in plans} & {s.id for s in stitches}
        done = {s.job for s in segments if s.state is DONE} | {
            s.id for s in stitches if s.state is DONE
        }
        assert all(p.members and set(p.members) <= done for p in plans)
        end = ends[turn % len(ends)]
        # A cancelled stitch may be planned again; the operator's patience is three of them.
        end = DONE if end is JobState.CANCELLED and turn > 3 else end
        stitches += [made(p, end) for p in plans]
    else:
        raise AssertionError("planning does not end")
    waiting = dataclasses.replace(seg("a9"), state=JobState.QUEUED)
    again = plan_stitches("dive", [*segments, waiting], stitches)
    assert all(p.level is StitchLevel.PER_AUV and p.auv != "a" for p in again)


def test_an_operators_decision_makes_one_new_version_of_the_stitch_it_is_about() -> None:
    segments = [seg("a1"), seg("a2")]
    (first,) = plan_stitches("dive", segments, [])
    for state in (HELD, DONE):
        before = dataclasses.replace(made(first, state), outdated=True)
        (again,) = plan_stitches("dive", segments, [before])
        assert again.id == "dive-stitch-a-v2" and again.members == first.members
        assert plan_stitches("dive", segments, [before, made(again, RUNNING)]) == ()
