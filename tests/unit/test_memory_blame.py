"""An out-of-memory is the job's own only where the GPU still had what it was promised."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.breaker import Limits, counts
from dispatcher.core.events import AttemptFailed
from dispatcher.core.ledger import Ledger
from dispatcher.core.machine import step
from dispatcher.core.memory_blame import after_a_look, in_doubt
from dispatcher.core.model import Job, JobKind, JobState, Layer, Reason, Reservation, Stage, Step
from dispatcher.core.policy import Policy
from dispatcher.core.views import GpuView, HostView

HEADROOM = 256
PROMISE = Reservation(job="j", attempt=3, host="h", slot="train", gpu="GPU-1", mib=6000)
JOB = Job(
    id="j", kind=JobKind.RECONSTRUCT, acquisition="a", name="n", auv="x", created_at=0.0,
    stage=Stage.TRAINING, state=JobState.RUNNING, step=Step.RUN, host="h", attempt=3,
    reservation=PROMISE,
)  # fmt: skip
OOM = AttemptFailed(at=9.0, attempt=3, reason=Reason.GPU_OUT_OF_MEMORY, message="refuses 900 MiB")


def gpu(foreign: int, others: int = 0, total: int = 12_000) -> GpuView:
    return GpuView(
        uuid="GPU-1", name="RTX", kind="cuda", total_mib=total,
        free_mib=max(0, total - foreign - others),
        own_mib={("k", 1): others} if others else {}, foreign_mib=foreign,
        holders=(("python of eve (pid 7)", foreign),) if foreign else (),
    )  # fmt: skip


def reason(seen: GpuView | None, peak: float | None = 4000.0) -> Reason:
    after = after_a_look(JOB, OOM, seen, peak)
    assert after.looked and not in_doubt(JOB, after)
    return after.reason


def test_who_left_less_than_was_promised_is_to_blame() -> None:
    assert reason(gpu(0)) is Reason.GPU_OUT_OF_MEMORY
    assert reason(gpu(6000)) is Reason.GPU_OUT_OF_MEMORY, "all that was promised was there"
    assert reason(gpu(6001)) is Reason.GPU_MEMORY_TAKEN
    assert reason(gpu(3000, others=3001)) is Reason.GPU_MEMORY_TAKEN, "another job took too much"
    assert reason(gpu(6001), peak=None) is Reason.GPU_MEMORY_TAKEN
    assert reason(gpu(6001), peak=6100.0) is Reason.GPU_OUT_OF_MEMORY, "it took too much itself"
    assert reason(None) is Reason.GPU_OUT_OF_MEMORY, "the host does not answer"


def test_what_the_attempt_itself_is_still_seen_to_use_is_nobody_else_s() -> None:
    late = dataclasses.replace(gpu(0), own_mib={("j", 3): 9000})
    assert reason(late) is Reason.GPU_OUT_OF_MEMORY
    older = dataclasses.replace(gpu(0), own_mib={("j", 2): 9000})
    assert reason(older) is Reason.GPU_MEMORY_TAKEN, "that was to be gone"


def test_the_operator_is_told_whose_memory_it_was() -> None:
    message = after_a_look(JOB, OOM, gpu(7000, others=500), 4000.0).message
    assert message == (
        "refuses 900 MiB: of 6000 MiB promised on GPU-1 4500 are left "
        "(12000 total, 500 of other jobs, 7000 foreign, 7000 MiB held by python of eve (pid 7))"
    )


@pytest.mark.parametrize(
    ("job", "event"),
    [
        (JOB, dataclasses.replace(OOM, reason=Reason.OUT_OF_MEMORY)),
        (JOB, dataclasses.replace(OOM, attempt=2)),
        (JOB, dataclasses.replace(OOM, looked=True)),
        (dataclasses.replace(JOB, step=Step.CANCEL), OOM),
        (dataclasses.replace(JOB, reservation=None), OOM),
        (dataclasses.replace(JOB, reservation=dataclasses.replace(PROMISE, gpu="CPU-h")), OOM),
    ],
)
def test_only_a_gpu_that_ran_out_of_memory_is_looked_at(job: Job, event: AttemptFailed) -> None:
    assert in_doubt(JOB, OOM)
    assert not in_doubt(job, event)


def test_memory_that_others_took_costs_the_job_nothing_of_its_own() -> None:
    taken = after_a_look(JOB, OOM, gpu(11_000), 4000.0)
    job, _ = step(JOB, taken)
    assert (job.step, job.shrink, job.need_mib, job.retries) == (Step.PLACE, 0, None, {"gpu": 1})
    assert job.not_before > OOM.at and "headroom" in job.advice
    again = dataclasses.replace(JOB, retries={"gpu": 1})
    assert step(again, taken)[0].avoid_hosts == ("h",), "the second time elsewhere"
    spent, _ = step(dataclasses.replace(JOB, retries={"gpu": 5}), taken)
    assert spent.state is JobState.HELD
    own, _ = step(JOB, after_a_look(JOB, OOM, gpu(0), 4000.0))
    assert (own.shrink, own.retries) == (1, {Layer.RESOURCE.value: 1})


def test_a_thief_is_no_fault_of_the_gpu() -> None:
    assert not counts(Reason.GPU_MEMORY_TAKEN, 1.0, Limits())


@given(
    total=st.integers(1000, 48_000),
    foreign=st.integers(0, 48_000),
    others=st.integers(0, 20_000),
    unused=st.integers(0, 5000),
    mib=st.integers(1, 48_000),
    grown=st.integers(0, 48_000),
    peak=st.none() | st.floats(0.0, 48_000.0),
)
def test_nobody_is_blamed_while_the_promise_holds(
    total: int, foreign: int, others: int, unused: int, mib: int, grown: int, peak: float | None
) -> None:
    before = gpu(foreign, others, total)
    view = HostView(name="h", reachable=True, gpus=(before,), headroom_mib=HEADROOM)
    ledger = Ledger(view, Policy())
    ledger.promise(
        Reservation(job="k", attempt=1, host="h", slot="train", gpu="GPU-1", mib=others + unused)
    )
    if ledger.free_mib(before) < mib:
        return  # it would not have been promised
    job = dataclasses.replace(JOB, reservation=dataclasses.replace(PROMISE, mib=mib))
    after = after_a_look(job, OOM, gpu(foreign + grown, others + unused, total), peak)
    if grown <= HEADROOM:
        assert after.reason is Reason.GPU_OUT_OF_MEMORY
    elif grown > total - foreign - others - unused - mib and (peak or 0.0) <= mib:
        assert after.reason is Reason.GPU_MEMORY_TAKEN
    else:
        assert after.reason is Reason.GPU_OUT_OF_MEMORY
