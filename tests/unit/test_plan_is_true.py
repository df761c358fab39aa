"""What `cosma plan` and `cosma why` say of any farm is what a decision on that farm does."""

from __future__ import annotations

import dataclasses
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.core import events as ev
from dispatcher.core import whatif
from dispatcher.core.explain import device_tests
from dispatcher.core.model import Reason, Reservation, Stage
from dispatcher.core.outlook import look_ahead
from dispatcher.core.place import Explained, place
from dispatcher.core.policy import Policy
from dispatcher.core.remedy import FREE_STEP_MIB, SIZES_GIB, remedies
from dispatcher.core.snapshot import Snapshot
from tests.unit.farms import NOW, SUSPECT, Choosy, Hungry, at, gpu, host, running
from tests.unit.worlds import World

SEEDS = st.integers(0, 1 << 32)


def any_farm(seed: int) -> Snapshot:
    """What random events have made of three hosts."""
    chance = random.Random(seed)
    policy = Policy(
        needs=chance.choice([Hungry(), Choosy()]),
        order=chance.choice(["earliest_finish", "most_free", "best_fit"]),
    )
    world = World(chance, policy)
    for _ in range(3):
        world.new_host()
    for _ in range(chance.randint(10, 100)):
        world.happen()
        if chance.random() < 0.3:
            decided = world.board.decide(world.now)
            for name, host in decided.assignments:
                world.apply(name, ev.HostAssigned(at=world.now, host=host))
            for promise in decided.stages:
                world.apply(promise.job, ev.StagePlaced(at=world.now, reservation=promise))
    return Snapshot(
        now=world.now,
        jobs=tuple(world.jobs.values()),
        hosts=tuple(world.hosts.values()),
        policy=world.board.policy,
    )


def with_change(farm: Snapshot, what_if: str) -> Snapshot | None:
    """None: there is not so much of it."""
    try:
        return whatif.apply(farm, whatif.parse(what_if))
    except whatif.WhatIfError:
        return None


def helps(farm: Snapshot, job: str, what_if: str) -> bool:
    changed = with_change(farm, what_if)
    return changed is not None and job in started(decision(changed))


def decision(farm: Snapshot) -> Explained:
    return place(farm.jobs, farm.hosts, farm.policy, farm.now)


def started(decided: Explained) -> set[str]:
    return {name for name, _ in decided.assignments} | {one.job for one in decided.stages}


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_the_plan_begins_with_the_next_decision_whatever_is_under_way(seed: int) -> None:
    farm = any_farm(seed)
    decided = decision(farm)
    look = look_ahead(farm, draws=0)
    stages = {job.id: job.stage for job in farm.jobs}
    first = look.decisions[: len(decided.assignments) + len(decided.stages)]

    def told(one: Reservation) -> tuple[object, ...]:
        return one.job, one.host, stages[one.job], one.gpu, one.mib

    assert {(one.job, one.host, one.stage, one.gpu, one.mib) for one in first} == {
        *((name, host, None, None, 0) for name, host in decided.assignments),
        *map(told, decided.stages),
    }
    assert look.at_once == started(decided)
    assert look.waiting == decided.waiting


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_each_remedy_starts_the_job_and_none_that_would_is_left_out(seed: int) -> None:
    farm = any_farm(seed)
    gpus = [gpu for host in farm.hosts for gpu in host.gpus if gpu.foreign_mib]
    every = [
        *(f"resume {host.name}" for host in farm.hosts),
        *(f"free {gpu.foreign_mib} MiB on {gpu.uuid}" for gpu in gpus),
        *(f"free 9999999 MiB of disk on {host.name}" for host in farm.hosts),
        *(f"add host with {size} GiB" for size in SIZES_GIB),
    ]
    jobs = {job.id: job for job in farm.jobs}
    for waiting in decision(farm).waiting[:4]:
        job = jobs[waiting.job]
        offered = [one.what_if for one in remedies(farm, job) if one.what_if]
        for one in offered:
            changed = with_change(farm, one)
            assert changed is not None and job.id in look_ahead(changed, draws=0).at_once
            if one.startswith("free"):
                _, mib, rest = one.split(" ", 2)
                less = int(mib) - FREE_STEP_MIB
                assert less <= 0 or not helps(farm, job.id, f"free {less} {rest}")
        for one in (f"priority {job.id} 99", *every):
            kind = what_it_is(one)
            if helps(farm, job.id, one):
                assert kind in map(what_it_is, offered)


def what_it_is(what_if: str) -> str:
    """`free disk`, `free memory`, or the verb."""
    verb, *words = what_if.split()
    return verb if verb != "free" else f"free {'disk' if 'disk' in words else 'memory'}"


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_each_gpu_of_a_waiting_job_has_its_own_first_failed_test(seed: int) -> None:
    farm = any_farm(seed)
    for waiting in decision(farm).waiting:
        for test in device_tests(farm, waiting):
            job = next(one for one in farm.jobs if one.id == waiting.job)
            host = next(one for one in farm.hosts if one.name == test.host)
            holds = test.gpu.total_mib - test.headroom_mib >= test.needs_mib
            assert test.reason is not None and test.why
            if not host.reachable:
                assert test.reason is (host.unreachable_reason or Reason.HOST_UNREACHABLE)
            elif test.reason is Reason.NO_GPU_FITS:
                assert not holds and test.gpu.quarantine is None
            elif test.reason is Reason.GPU_QUARANTINED:
                assert test.gpu.quarantine is not None
            elif test.reason is Reason.GPU_BUSY:
                assert holds and test.free_mib < test.needs_mib and job.host == test.host
            elif job.host != test.host:
                assert host.cordoned or host.quarantine or not host.ready or holds


def test_on_two_gpus_of_a_host_different_tests_fail_and_the_numbers_add_up() -> None:
    mine = {("old", 1): 900}
    devices = (
        gpu("GPU-a", 8000, own_mib=mine, foreign_mib=4000, free_mib=3100, holders=(("bob", 4000),)),
        gpu("GPU-b", 8000, quarantine=SUSPECT),
        gpu("GPU-c", 2000),
        gpu("GPU-d", 8000, probe_age_s=500.0),
    )
    job = at("j", Stage.TRAINING, need_mib=6000)
    other = running("t", Stage.TRAINING, 1000, "GPU-a")
    many = {"train": 8}
    there = host("gpu-a", *devices, headroom_mib=200, max_parallel=many)
    farm = Snapshot(now=NOW, jobs=(job, other), hosts=(there,), policy=Policy())
    (waiting,) = decision(farm).waiting
    found = {test.gpu.uuid: (test.reason, test.why) for test in device_tests(farm, waiting)}
    assert found["GPU-a"] == (
        Reason.GPU_BUSY,
        # 8000 - 1000 - (4000 + 900) - 200
        "GPU-a needs 6000 MiB, free 1900 MiB (8000 total, 1000 reserved by t, 4900 foreign, "
        "4000 held by bob, 200 headroom)",
    )
    assert found["GPU-b"] == (Reason.GPU_QUARANTINED, f"GPU-b is {SUSPECT.line}")
    assert found["GPU-c"][0] is Reason.NO_GPU_FITS
    assert found["GPU-d"] == (
        Reason.PROBE_STALE, "GPU-d was last probed 500 s ago (limit 120 s)",
    )  # fmt: skip
    assert waiting.message.startswith(f"gpu-a: {found['GPU-a'][1]}")


def test_numbers_of_ram_add_up_and_count_a_promise_once() -> None:
    other = dataclasses.replace(
        running("t", Stage.COLMAP_RECONSTRUCTION),
        reservation=Reservation(job="t", attempt=1, host="gpu-a", slot="sfm", ram_mib=3000),
    )
    there = host(
        "gpu-a", ram_total_mib=16_000, ram_free_mib=9000, ram_own_mib={("t", 1): 1000},
        max_parallel={"sfm": 2},
    )  # fmt: skip
    job = at("j", Stage.COLMAP_RECONSTRUCTION, need_ram_mib=7500)
    (waiting,) = place([other, job], [there], Policy(), NOW).waiting
    # 16000 in all, 9000 of them free; 1000 are t's, so 6000 others', and 2000 more are promised.
    assert waiting.message == (
        "gpu-a: needs 7500 MiB of RAM, free 7000 MiB (16000 total, 3000 reserved by t, "
        "6000 used by others)"
    )
