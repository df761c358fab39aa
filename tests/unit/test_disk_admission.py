"""A job gets a host only if its disk holds the most that the job and all others there will take."""

from __future__ import annotations

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.core.expected import expected
from dispatcher.core.model import RECONSTRUCT_STAGES, Job, JobState, Reason, Stage, Step
from dispatcher.core.need import Needs, Observation
from dispatcher.core.place import Policy, place
from dispatcher.core.work_size import shape_of
from tests.unit.farms import GIB, NOW, at, host, job

MIB = 1 << 20
POLICY = Policy()


def waits_for(one: Job, free: int, *others: Job) -> str:
    decision = place([one, *others], [host(disk_free_bytes=free)], POLICY, NOW)
    found = {waiting.job: waiting for waiting in decision.waiting}.get(one.id)
    if found is None:
        return ""
    assert found.reason is Reason.DISK_LOW
    return found.message


def test_a_disk_that_is_too_small_is_told_by_the_byte() -> None:
    one = job("j", input_bytes=4 * GIB, frames=300, pixels=960 * 540, cap=100_000)
    need = POLICY.disk_need(one)
    assert waits_for(one, need) == ""
    assert f": {64 * MIB} bytes are missing" in waits_for(one, need - 64 * MIB)
    reserve = host(disk_free_bytes=need + GIB, disk_reserve_bytes=GIB + 1)
    decision = place([one], [reserve], POLICY, NOW)
    assert "1.00 GiB in reserve" in decision.waiting[0].message
    assert "left: 1 bytes are missing" in decision.waiting[0].message


def test_what_the_others_will_still_write_is_taken_off() -> None:
    other = at("other", Stage.TRAINING, input_bytes=GIB, cap=1_000_000)
    one = job("j", input_bytes=GIB)
    need = POLICY.disk_need(one)
    # It is told whose: the operator may look at what that one does.
    message = waits_for(one, need + 100 * MIB, other)
    assert "beside what other will still take" in message
    assert waits_for(one, need + POLICY.disk_ahead(other), other) == ""


@given(
    frames=st.integers(0, 5000),
    pixels=st.integers(0, 4000 * 3000),
    cap=st.integers(0, 5_000_000),
    input_bytes=st.integers(0, 12 * GIB),
    first=st.integers(0, len(RECONSTRUCT_STAGES) - 1),
)
def test_the_most_is_never_less_than_any_prefix_of_the_stages(
    frames: int, pixels: int, cap: int, input_bytes: int, first: int
) -> None:
    one = job("j", frames=frames, pixels=pixels, cap=cap, input_bytes=input_bytes)
    needs = Needs()
    ahead = RECONSTRUCT_STAGES[first:]
    most = needs.most_disk_bytes(dataclasses.replace(one, stage=ahead[0]))
    there = 0
    for stage in ahead:
        there += needs.of(dataclasses.replace(one, stage=stage), None).disk_bytes
        assert there <= most
        if stage is Stage.FRAME_EXTRACTION:
            there -= input_bytes


def test_runs_correct_the_guess_and_a_disk_that_ran_full_raises_it() -> None:
    one = job("j", stage=Stage.FRAME_EXTRACTION, frames=300, pixels=960 * 540, input_bytes=GIB)
    cost = expected(Stage.FRAME_EXTRACTION, shape_of(one)).disk_mib
    run = Observation(
        stage=Stage.FRAME_EXTRACTION, device="", frames=300, pixels=960 * 540, cap=0,
        wall_s=1.0, cpu_s=1.0, peak_rss_mib=1.0, peak_vram_mib=None,
        peak_disk_bytes=round(cost * MIB / 2),
    )  # fmt: skip
    assert Needs().of(one, None).disk_bytes == GIB
    learned = Needs.learned_from([run] * 20)
    assert cost * MIB / 2 <= learned.of(one, None).disk_bytes <= 0.7 * cost * MIB
    full = dataclasses.replace(run, died_of=Reason.DISK_FULL, peak_disk_bytes=round(2 * cost * MIB))
    assert learned.learn(full).of(one, None).disk_bytes >= 2 * cost * MIB


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 12), min_size=2, max_size=10), spare=st.integers(0, 8))
def test_jobs_that_do_not_fit_together_all_get_done(sizes: list[int], spare: int) -> None:
    """Each stage takes what was predicted, and keeps it until the job is done: the disk is never
    over-committed, and no job waits for ever on what another one waits for, too."""
    jobs = {
        f"j{n}": job(f"j{n}", input_bytes=size * GIB, created_at=float(n))
        for n, size in enumerate(sizes)
    }
    disk = max(POLICY.disk_need(one) for one in jobs.values()) + spare * GIB
    used: dict[str, int] = {}
    for _ in range(40 * len(jobs)):
        view = host(
            disk_free_bytes=disk - sum(used.values()),
            max_parallel={"extract": 4, "sfm": 4, "train": 4, "stitch": 1},
        )
        decision = place(jobs.values(), [view], POLICY, NOW)
        for name, where in decision.assignments:
            jobs[name] = dataclasses.replace(
                jobs[name], host=where, state=JobState.CLAIMED, step=Step.TRANSFER
            )
        for name, one in jobs.items():
            if one.step is Step.TRANSFER:
                used[name] = one.input_bytes
                jobs[name] = dataclasses.replace(one, step=Step.PLACE, inputs_on_host=True)
        for start in decision.stages:
            one = jobs[start.job]
            used[one.id] += start.disk_bytes
            assert sum(used.values()) <= disk, "it ran full"
            if one.stage is Stage.FRAME_EXTRACTION:
                used[one.id] -= one.input_bytes
            later = RECONSTRUCT_STAGES.index(one.stage) + 1
            if later < len(RECONSTRUCT_STAGES):
                jobs[one.id] = dataclasses.replace(one, stage=RECONSTRUCT_STAGES[later])
            else:
                del jobs[one.id], used[one.id]
        if not jobs:
            return
    raise AssertionError(f"left: {[(one.id, one.stage, one.step) for one in jobs.values()]}")
