"""What `cosma fsck` says of the books alone."""

from __future__ import annotations

import dataclasses

import pytest

from dispatcher.core.model import Job, JobState, Stage, Step
from dispatcher.core.place import Policy, place
from dispatcher.core.views import GpuView
from dispatcher.fsck import book_differences, inputs_left, leftovers, promise
from dispatcher.store.rows import Attempt, Lease
from tests.unit.farms import NOW, at, gpu, host, job

LIVE = at("j", Stage.TRAINING, step=Step.RUN, attempt=6)


def test_books_that_contradict_themselves() -> None:
    # It is live, without a reservation; its lease is of an attempt that is over.
    old = Lease(job="j", attempt=5, host="h", lease_s=1.0, renewed_at=0.0)
    kinds = [item.kind for item in book_differences([LIVE], [old])]
    assert kinds == ["reservation_missing", "lease_missing", "lease_stray"]
    assert book_differences([], []) == []


def test_inputs_of_ended_jobs_are_told() -> None:
    done = job("k", state=JobState.DONE, step=Step.REST, host="h", inputs_on_host=True)
    assert [item.job for item in inputs_left([LIVE, done])] == ["k"]


def test_copies_on_hosts_that_jobs_have_left_are_told_host_by_host() -> None:
    moved = dataclasses.replace(LIVE, leftovers=("gpu-b", "gpu-c"))
    told = [(item.job, item.where, item.repairable) for item in leftovers([job("k"), moved])]
    assert told == [("j", "gpu-b", True), ("j", "gpu-c", True)]


@pytest.mark.parametrize("device", [gpu(), gpu(total=32_000, kind="cpu")], ids=["cuda", "cpu"])
@pytest.mark.parametrize("stage", [Stage.FRAME_EXTRACTION, Stage.TRAINING])
def test_a_lost_reservation_is_made_as_the_promise_was(stage: Stage, device: GpuView) -> None:
    policy = Policy()
    there = host(
        "gpu-a", device, cpu_cores=8, ram_total_mib=64_000, ram_free_mib=64_000,
        disk_free_bytes=1 << 40,
    )  # fmt: skip
    waits: Job = at("j", stage, frames=123, input_bytes=9_999_999_999)
    (promised,) = place([waits], [there], policy, NOW).stages
    attempt = Attempt(
        job="j", attempt=1, stage=stage, host="gpu-a", gpu=promised.gpu, state="running", epoch=1,
        committed_at=NOW,
    )  # fmt: skip
    assert promised.ram_mib and promised.cpu_cores
    assert promise(attempt, waits, there.gpus, policy) == promised
