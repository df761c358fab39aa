"""Whether a moved job takes its outputs along, and where it goes on."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.handoff import PATIENCE_MOST_S, Cost, cost, resume_stage
from dispatcher.core.model import RECONSTRUCT_STAGES, Job, JobKind, JobState, Stage
from dispatcher.core.moves import needs_inputs
from dispatcher.core.need import Needs

JOB = Job(
    id="j", kind=JobKind.RECONSTRUCT, acquisition="a", name="j", auv="x", created_at=0.0,
    state=JobState.RUNNING, host="old", input_bytes=4_000_000_000, stage=Stage.TRAINING,
)  # fmt: skip

costs = st.builds(
    Cost,
    bytes=st.integers(0, 1 << 40),
    link_bytes_s=st.sampled_from([0.0, 1e3, 1e6, 1e8]),
    source_bytes=st.integers(0, 1 << 40),
    stages_s=st.floats(0, 1e6),
)
stages = st.sampled_from(RECONSTRUCT_STAGES)


@given(costs)
def test_work_is_kept_unless_moving_it_is_known_to_take_longer(price: Cost) -> None:
    if price.link_bytes_s == 0:
        assert price.worth
    else:
        moving = price.bytes / price.link_bytes_s
        assert price.worth == (moving <= price.source_bytes / price.link_bytes_s + price.stages_s)
    assert 0 <= price.patience_s <= PATIENCE_MOST_S


@given(costs, st.integers(0, 1 << 30), st.floats(0, 1e4))
def test_more_bytes_never_help_and_more_work_never_hurts(
    price: Cost, more_bytes: int, more_s: float
) -> None:
    larger = dataclasses.replace(price, bytes=price.bytes + more_bytes)
    longer = dataclasses.replace(price, stages_s=price.stages_s + more_s)
    assert price.worth or not larger.worth
    assert longer.worth or not price.worth
    assert longer.patience_s >= price.patience_s


@pytest.mark.parametrize(
    ("links", "slower"), [((1e6, 2e6), 1e6), ((0.0, 2e6), 2e6), ((0.0, 0.0), 0.0), ((), 0.0)]
)
def test_the_slower_link_that_is_known_counts(links: tuple[float, ...], slower: float) -> None:
    assert cost(JOB, 1, links, Needs(), None).link_bytes_s == slower


@given(stages, stages)
def test_later_jobs_have_more_to_lose(one: Stage, other: Stage) -> None:
    first, second = sorted((one, other), key=RECONSTRUCT_STAGES.index)
    less, more = (
        cost(dataclasses.replace(JOB, stage=stage), 1, (), Needs(), None).stages_s
        for stage in (first, second)
    )
    assert less <= more and (less > 0) == (first is not Stage.VALIDATION)


@given(
    at=stages,
    lost=st.sets(stages),
    silent=st.sets(stages),
)
def test_a_job_resumes_at_the_newest_stage_with_all_before_it(
    at: Stage, lost: set[Stage], silent: set[Stage]
) -> None:
    job = dataclasses.replace(JOB, stage=at)
    before = RECONSTRUCT_STAGES[: RECONSTRUCT_STAGES.index(at)]
    made = {stage: [f"{stage}/a", f"{stage}/b"] for stage in before if stage not in silent}
    missing = {f"{stage}/b" for stage in lost}
    found = resume_stage(job, made, missing)
    gaps = [stage for stage in before if stage in lost | silent]
    if not gaps:
        assert found is at
    elif needs_inputs(job.kind, gaps[0]):
        assert found is None
    else:
        assert found is gaps[0]


def test_a_training_is_moved_over_a_fast_link_and_redone_behind_a_slow_one() -> None:
    frames = 500_000_000
    assert cost(JOB, frames, (100e6, 50e6), Needs(), None).worth
    cheap = dataclasses.replace(JOB, input_bytes=1_000, stage=Stage.METADATA_EXTRACTION)
    assert not cost(cheap, frames, (100e6, 1e3), Needs(), None).worth
