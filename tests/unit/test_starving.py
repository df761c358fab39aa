"""No job waits for ever because of others: no large one, no stitch, none that lacks disk."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.core import model as m
from dispatcher.core.board import Board
from dispatcher.core.model import Job, JobKind, JobState, Stage, Step
from dispatcher.core.place import place
from dispatcher.core.policy import Policy
from tests.unit.farms import GIB, NOW, at, gpu, host, job


def shared(patience_s: float, lasts: list[int], small_mib: int) -> float | None:
    """A GPU that two small trainings share, of which there are always more: when a large one
    starts that needs it alone. `lasts`: rounds that the small ones take, in turn."""
    board = Board(Policy(patience_s=patience_s))
    view = host("gpu-a", gpu(total=24000), max_parallel={"train": 2})
    board.put_host(view)
    ends: dict[str, int] = {}
    for number in range(200):
        now = NOW + 60.0 * number
        for name in [name for name, end in ends.items() if end <= number]:
            board.drop_job(name)
            del ends[name]
        if number == 1:
            board.put_job(at("large", Stage.TRAINING, need_mib=20000, assigned_at=now))
        for spare in range(3):
            fresh = at(f"small-{number}-{spare}", Stage.TRAINING, need_mib=small_mib,
                       acquisition="wreck", assigned_at=now)  # fmt: skip
            board.put_job(fresh)
        for promise in board.decide(now).stages:
            if promise.job == "large":
                return now - NOW
            started = at(promise.job, Stage.TRAINING, need_mib=small_mib, acquisition="wreck",
                         step=Step.RUN, attempt=1, reservation=promise)  # fmt: skip
            board.put_job(started)
            ends[promise.job] = number + lasts[len(ends) % len(lasts)]
    return None


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(5000, 11000),
    st.sampled_from([0.0, 600.0, 3600.0]),
)
@settings(max_examples=40, deadline=None)
def test_a_large_training_is_not_passed_for_ever(
    lasts: list[int], small_mib: int, patience_s: float
) -> None:
    waited = shared(patience_s, lasts, small_mib)
    # After its patience: what runs ends, one small one came before it, and ends too.
    assert waited is not None and waited <= patience_s + 60.0 * (2 * max(lasts) + 2)


def test_without_patience_it_would_be() -> None:
    """So that the test above is about something."""
    assert shared(1e12, [2, 3], 9000) is None


@pytest.mark.parametrize("behind", list(JobKind))
def test_neither_stitches_nor_segments_starve(behind: JobKind) -> None:
    """A thousand of one kind that came earlier do not keep back the first of the other kind."""
    ahead = JobKind.STITCH if behind is JobKind.RECONSTRUCT else JobKind.RECONSTRUCT

    def of(name: str, kind: JobKind, **values: object) -> Job:
        return job(name, kind=kind, stage=m.stages_of(kind)[0], **values)

    first = [of(f"a{n}", ahead, created_at=float(n)) for n in range(1000)]
    held = [of("h", ahead, host="gpu-a", state=JobState.RUNNING, step=Step.RUN)]
    late = of("late", behind, created_at=5000.0)
    decision = place([*first, *held, late], [host()], Policy(), 1e6)
    assert decision.assignments[0] == ("late", "gpu-a")


def test_an_old_job_that_lacks_disk_keeps_it_from_younger_ones() -> None:
    theirs = [
        at(f"there-{n}", Stage.TRAINING, step=Step.RUN, input_bytes=10 * GIB) for n in range(2)
    ]
    view = host(disk_free_bytes=9 * GIB, cached_bytes={one.id: 10 * GIB for one in theirs})
    large = job("large", input_bytes=12 * GIB)
    small = job("small", input_bytes=GIB, created_at=5.0)
    assert place([large, small, *theirs], [view], Policy(), 100.0).assignments == (
        ("small", "gpu-a"),
    )
    decision = place([large, small, *theirs], [view], Policy(), 1000.0)
    assert decision.assignments == ()
    assert "its disk is kept for large" in {w.job: w for w in decision.waiting}["small"].message
    hopeless = dataclasses.replace(large, input_bytes=80 * GIB)
    decision = place([hopeless, small, *theirs], [view], Policy(), 1000.0)
    assert decision.assignments == (("small", "gpu-a"),)
