"""Placement: never more promised than there is, nothing left out without a reason."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.core import events as ev
from dispatcher.core import model as m
from dispatcher.core.machine import step
from dispatcher.core.model import Job, JobKind, JobState, Reason, Reservation, Stage, Step
from dispatcher.core.need import FirstGuess, Needs
from dispatcher.core.place import GPU_STAGES, SLOT_OF, Policy, place
from dispatcher.core.views import HostView
from tests.unit.farms import GIB, NOW, SUSPECT, UNFIT, at, gpu, host, job, running

POLICY = Policy()


def promises(jobs: list[Job]) -> list[Reservation]:
    return [j.reservation for j in jobs if j.reservation is not None]


# --- properties over random farms ---

QUARANTINES = st.sampled_from([None, None, None, SUSPECT, UNFIT])


@st.composite
def farms(draw: st.DrawFn) -> tuple[list[Job], list[HostView]]:
    hosts, own = [], {}
    for index in range(draw(st.integers(1, 3))):
        devices = []
        for number in range(draw(st.integers(0, 2))):
            total = draw(st.integers(1000, 26000))
            foreign = draw(st.integers(0, total))
            devices.append(
                gpu(
                    f"GPU-{index}{number}", total, foreign_mib=foreign,
                    kind=draw(st.sampled_from(["cuda", "cpu"])),
                    free_mib=draw(st.integers(0, total)),
                    quarantine=draw(QUARANTINES),
                )
            )  # fmt: skip
        draining = not draw(st.integers(0, 4).map(bool))
        hosts.append(
            HostView(
                name=f"h{index}",
                reachable=draw(st.integers(0, 4).map(bool)),
                silent_s=draw(st.sampled_from([5.0, 1e4])),
                cordoned=draining or not draw(st.integers(0, 4).map(bool)),
                draining=draining,
                quarantine=draw(QUARANTINES),
                ready=draw(st.integers(0, 4).map(bool)),
                gpus=tuple(devices),
                max_parallel=draw(
                    st.dictionaries(st.sampled_from(["extract", "sfm", "train"]), st.integers(0, 3))
                ),
                headroom_mib=draw(st.sampled_from([0, 512])),
                disk_free_bytes=draw(st.integers(0, 40)) * GIB,
                disk_reserve_bytes=draw(st.integers(0, 5)) * GIB,
                probe_age_s=draw(st.sampled_from([1.0, 1e9])),
            )
        )
    jobs = []
    for index in range(draw(st.integers(0, 12))):
        kind = draw(st.sampled_from(JobKind))
        one = job(
            f"j{index}",
            kind=kind,
            acquisition=draw(st.sampled_from(["dive", "wreck"])),
            priority=draw(st.integers(0, 2)),
            created_at=float(draw(st.integers(0, 5))),
            input_bytes=draw(st.integers(0, 12)) * GIB,
            need_mib=draw(st.sampled_from([None, None, 500, 9000])),
            not_before=draw(st.sampled_from([0.0, 0.0, NOW + 5])),
            stage=draw(st.sampled_from(m.stages_of(kind))),
            avoid_hosts=draw(st.sampled_from([(), (), ("h0",)])),
        )
        where = draw(st.sampled_from([None, *(h.name for h in hosts), "gone"]))
        if where is not None:
            one = dataclasses.replace(one, host=where, state=JobState.CLAIMED)
            there = next((h.gpus for h in hosts if h.name == where), ())
            if draw(st.booleans()) and (there or one.stage not in GPU_STAGES):
                device = there[0] if one.stage in GPU_STAGES else None
                mib = draw(st.integers(0, 6000)) if device else 0
                held = Reservation(
                    job=one.id, attempt=1, host=where, slot=SLOT_OF[one.stage],
                    gpu=device.uuid if device else None, mib=mib,
                )  # fmt: skip
                one = dataclasses.replace(one, step=Step.RUN, attempt=1, reservation=held)
                if device:
                    own[where, device.uuid, one.id] = draw(st.integers(0, 7000))
        jobs.append(one)
    seen = [
        dataclasses.replace(
            h,
            gpus=tuple(
                dataclasses.replace(
                    g, own_mib={(k[2], 1): v for k, v in own.items() if k[:2] == (h.name, g.uuid)}
                )
                for g in h.gpus
            ),
        )
        for h in hosts
    ]
    return jobs, seen


@given(farms())
@settings(max_examples=150, deadline=None)
def test_no_device_slot_or_disk_is_promised_more_than_it_has(
    farm: tuple[list[Job], list[HostView]],
) -> None:
    jobs, hosts = farm
    before = promises(jobs)
    decision = place(jobs, hosts, POLICY, NOW)
    for view in hosts:
        fresh = [r for r in decision.stages if r.host == view.name]
        old = [r for r in before if r.host == view.name]
        if not fresh:
            continue
        assert view.reachable and view.ready
        assert not view.draining and view.quarantine is None
        for device in view.gpus:
            new = [r for r in fresh if r.gpu == device.uuid]
            if new:
                assert device.quarantine is None
                unused = sum(
                    max(0, r.mib - device.own_mib.get((r.job, r.attempt), 0))
                    for r in old
                    if r.gpu == device.uuid
                )
                promised = sum(r.mib for r in [*old, *new] if r.gpu == device.uuid)
                asked = sum(r.mib for r in new)
                assert promised + device.foreign_mib + view.headroom_mib <= device.total_mib
                assert asked + unused + view.headroom_mib <= device.free_mib
        for slot in ("extract", "sfm", "train", "stitch"):
            limit = view.max_parallel.get(
                slot, max(1, len(view.gpus)) if slot == "train" else POLICY.slots[slot]
            )
            if any(r.slot == slot for r in fresh):
                assert sum(r.slot == slot for r in [*fresh, *old]) <= limit
    for view in hosts:
        coming = [j for j, h in decision.assignments if h == view.name]
        if coming:
            need = sum(j.input_bytes for j in jobs if j.id in coming)
            assert need + view.disk_reserve_bytes <= view.disk_free_bytes
            assert view.reachable and view.ready and not view.cordoned
            assert view.quarantine is None


@given(farms(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_one_snapshot_one_decision(
    farm: tuple[list[Job], list[HostView]], chance: random.Random
) -> None:
    jobs, hosts = farm
    decision = place(jobs, hosts, POLICY, NOW)
    shuffled, turned, kept = list(jobs), list(hosts), promises(jobs)
    for items in (shuffled, turned, kept):
        chance.shuffle(items)
    assert place(shuffled, turned, POLICY, NOW) == decision


@given(farms())
@settings(max_examples=80, deadline=None)
def test_every_job_is_placed_or_told_why_not(farm: tuple[list[Job], list[HostView]]) -> None:
    jobs, hosts = farm
    decision = place(jobs, hosts, POLICY, NOW)
    placed = [j for j, _ in decision.assignments] + [r.job for r in decision.stages]
    told = [w.job for w in decision.waiting]
    expected = sorted(j.id for j in jobs if j.step is Step.PLACE)
    assert sorted(placed + told) == expected
    by_id = {j.id: j for j in jobs}
    for waiting in decision.waiting:
        one = by_id[waiting.job]
        assert waiting.message
        assert (waiting.reason is Reason.BACKOFF) == (one.not_before > NOW)
        if one.host is None and waiting.reason is not Reason.BACKOFF:
            assert set(waiting.per_host) == {h.name for h in hosts}
    for reservation in decision.stages:
        one, _ = step(by_id[reservation.job], ev.StagePlaced(at=NOW, reservation=reservation))
        assert one.reservation == reservation
    for name, where in decision.assignments:
        one, _ = step(by_id[name], ev.HostAssigned(at=NOW, host=where))
        assert one.host == where


# --- single rules ---


def only_waiting(jobs: list[Job], hosts: list[HostView]) -> m.Waiting:
    decision = place(jobs, hosts, POLICY, NOW)
    (waiting,) = decision.waiting
    return waiting


def test_the_reason_carries_the_numbers_of_the_device() -> None:
    thief = host(
        "gpu-a",
        gpu(free_mib=5200, foreign_mib=2800, holders=(("pid 8841 (not ours)", 2800),)),
    )
    jobs = [running("other", Stage.TRAINING, 3000, "GPU-1"), at("j", Stage.TRAINING)]
    waiting = only_waiting(
        jobs, [dataclasses.replace(thief, max_parallel={"train": 2}, headroom_mib=100)]
    )
    assert waiting.reason is Reason.GPU_BUSY
    assert waiting.per_host["gpu-a"] == (
        "gpu-a: GPU-1 needs 6000 MiB, free 2100 MiB "
        "(11000 total, 3000 reserved by other, 2800 foreign, 2800 held by pid 8841 (not ours), "
        "100 headroom)"
    )


def test_memory_an_attempt_uses_is_not_counted_twice() -> None:
    half = running("other", Stage.TRAINING, 6000, "GPU-1")
    seen = gpu(total=13000, free_mib=7500, own_mib={("other", 1): 5500})
    view = host("gpu-a", seen, max_parallel={"train": 2})
    decision = place([half, at("j", Stage.TRAINING)], [view], POLICY, NOW)
    assert [(r.job, r.mib, r.gpu) for r in decision.stages] == [("j", 6000, "GPU-1")]


def test_memory_of_an_attempt_nobody_knows_is_foreign() -> None:
    view = host("gpu-a", gpu(free_mib=11000, own_mib={("ghost", 3): 6000}))
    assert only_waiting([at("j", Stage.TRAINING)], [view]).reason is Reason.GPU_BUSY


def test_two_gpus_train_two_jobs_one_on_each() -> None:
    view = host("gpu-a", gpu("GPU-1", 24000), gpu("GPU-2", 24000))
    jobs = [at("a", Stage.TRAINING), at("b", Stage.TRAINING), at("c", Stage.TRAINING)]
    decision = place(jobs, [view], POLICY, NOW)
    assert [(r.job, r.gpu, r.attempt) for r in decision.stages] == [
        ("a", "GPU-1", 1),
        ("b", "GPU-2", 1),
    ]
    assert [(w.job, w.reason) for w in decision.waiting] == [("c", Reason.SLOT_BUSY)]


def test_memory_is_promised_only_to_stages_that_use_it() -> None:
    full = host("gpu-a", gpu(free_mib=0, foreign_mib=11000))
    decision = place([at("j", Stage.COLMAP_RECONSTRUCTION)], [full], POLICY, NOW)
    assert [(r.slot, r.gpu, r.mib) for r in decision.stages] == [("sfm", None, 0)]


def test_a_cpu_host_needs_less() -> None:
    view = host("gpu-a", gpu("CPU-1", 4000, kind="cpu"))
    decision = place([at("j", Stage.TRAINING)], [view], POLICY, NOW)
    assert [(r.gpu, r.mib) for r in decision.stages] == [("CPU-1", 1500)]


def test_new_jobs_go_where_most_memory_is_free_net_of_promises() -> None:
    hosts = [host("gpu-a", gpu("GPU-1", 24000)), host("gpu-b", gpu("GPU-2", 12000))]
    training = running("other", Stage.TRAINING, 14000, "GPU-1")
    decision = place([training, job("j")], hosts, POLICY, NOW)
    assert decision.assignments == (("j", "gpu-b"),)


def test_an_idle_device_comes_before_the_one_with_more_memory() -> None:
    farm = [host("big", gpu("GPU-1", total=24000)), host("small", gpu("GPU-2", total=12000))]
    decision = place([job("a"), job("b"), job("c")], farm, Policy(), 0.0)
    assert dict(decision.assignments) == {"a": "big", "b": "small", "c": "big"}


def test_one_job_trains_one_is_prepared_and_one_is_on_the_wire() -> None:
    decision = place([job(f"j{n}") for n in range(4)], [host()], POLICY, NOW)
    assert [name for name, _ in decision.assignments] == ["j0", "j1"]
    assert [w.reason for w in decision.waiting] == [Reason.SLOT_BUSY] * 2
    assert "has 2 jobs on the wire (limit 2)" in decision.waiting[0].message
    there = [running("j0", Stage.VALIDATION), at("j1", Stage.VALIDATION, attempt=1)]
    decision = place([*there, job("j2"), job("j3")], [host()], POLICY, NOW)
    assert decision.assignments == (("j2", "gpu-a"),)
    (told,) = [w for w in decision.waiting if w.job == "j3"]
    assert "holds 3 jobs (limit 3: 1 GPU + 2 prefetched)" in told.message


def test_a_host_that_failed_a_job_is_the_last_resort() -> None:
    jobs = [job("j", avoid_hosts=("gpu-a",))]
    both = [host("gpu-a", gpu("GPU-1", 48000)), host("gpu-b", gpu("GPU-2", 8000))]
    assert place(jobs, both, POLICY, NOW).assignments == (("j", "gpu-b"),)
    busy = [at(name, Stage.VALIDATION, "gpu-b", step=Step.RUN) for name in "xyz"]
    (waiting,) = place([*jobs, *busy], both, POLICY, NOW).waiting
    assert "failed this job before" in waiting.per_host["gpu-a"]
    gone = [both[0], dataclasses.replace(both[1], reachable=False)]
    assert place(jobs, gone, POLICY, NOW).assignments == (("j", "gpu-a"),)


def test_a_job_stays_with_a_silent_host_but_not_with_a_device_too_small_for_it() -> None:
    hosts = [host("gpu-a", gpu("GPU-1", 8000)), host("gpu-b", gpu("GPU-2", 24000))]
    silent = [
        dataclasses.replace(hosts[0], reachable=False, unreachable_message="no route"), hosts[1],
    ]  # fmt: skip
    waiting = only_waiting([at("j", Stage.TRAINING)], silent)
    assert (waiting.reason, waiting.message) == (Reason.HOST_UNREACHABLE, "gpu-a: no route")
    grown = at("j", Stage.TRAINING, need_mib=9000)
    assert place([grown], hosts, POLICY, NOW).assignments == (("j", "gpu-b"),)
    waiting = only_waiting([grown], hosts[:1])
    assert waiting.reason is Reason.NO_GPU_FITS
    assert "GPU-1 needs 9000 MiB, has 8000 total" in waiting.message


def test_one_wide_job_does_not_block_the_ones_behind_it() -> None:
    wide = job("wide", priority=9, need_mib=20000)
    decision = place([wide, job("small")], [host()], POLICY, NOW)
    assert decision.assignments == (("small", "gpu-a"),)
    assert [(w.job, w.reason) for w in decision.waiting] == [("wide", Reason.NO_GPU_FITS)]


def test_order_is_priority_then_fair_share_then_age() -> None:
    jobs = [
        job("d1", created_at=1.0), job("d2", created_at=2.0), job("d3", created_at=3.0),
        job("w1", created_at=4.0, acquisition="wreck"), job("d4", created_at=5.0, priority=1),
    ]  # fmt: skip
    hosts = [host("gpu-a", *(gpu(f"GPU-{n}") for n in range(5)))]
    order = [name for name, _ in place(jobs, hosts, POLICY, NOW).assignments]
    assert order == ["d4", "w1", "d1", "d2", "d3"]


def test_each_step_of_priority_counts_whatever_the_share_and_the_age() -> None:
    """For a host, and for a slot of the host they have."""
    steps = [0, 7, -1, 2, 1, -5, 3]
    far = [job(f"p{n}", priority=n, created_at=float(n), frames=100 + n) for n in steps]
    hosts = [host("gpu-a", *(gpu(f"GPU-{n}") for n in range(len(steps))))]
    given = [name for name, _ in place(far, hosts, POLICY, NOW).assignments]
    assert given == ["p7", "p3", "p2", "p1", "p0", "p-1", "p-5"]
    while far:
        here = [
            dataclasses.replace(one, host="gpu-a", state=JobState.CLAIMED, assigned_at=NOW)
            for one in far
        ]
        slot = host("gpu-a", max_parallel={"extract": 1})
        (started,) = place(here, [slot], POLICY, NOW).stages
        assert started.job == given.pop(0)
        far = [one for one in far if one.id != started.job]


@pytest.mark.parametrize(
    ("values", "reason", "text"),
    [
        ({"reachable": False, "unreachable_reason": Reason.HOST_KEY_MISMATCH,
          "unreachable_message": "key SHA256:x"}, Reason.HOST_KEY_MISMATCH, "key SHA256:x"),
        ({"cordoned": True}, Reason.HOST_CORDONED, "cosma worker resume gpu-a"),
        ({"ready": False, "not_ready_message": "lacks torch"}, Reason.HOST_NOT_READY, "torch"),
        ({"probe_age_s": 500.0}, Reason.PROBE_STALE, "500 s ago (limit 120 s)"),
        ({"disk_free_bytes": 3 * GIB}, Reason.DISK_LOW, "needs 8.00 GiB and 0.00 GiB in reserve"),
        ({"gpus": (gpu(total=4000),)}, Reason.NO_GPU_FITS, "needs 6000 MiB, has 4000 total"),
    ],
)  # fmt: skip
def test_each_refusal_of_a_host_is_told(
    values: dict[str, object], reason: Reason, text: str
) -> None:
    waiting = only_waiting([job("j", input_bytes=4 * GIB)], [host("gpu-a", **values)])
    assert waiting.reason is reason and text in waiting.message


def test_the_nearest_host_gives_the_reason_and_all_are_listed() -> None:
    hosts = [host("gpu-a", cordoned=True), host("gpu-b", gpu(total=4000))]
    waiting = only_waiting([job("j")], hosts)
    assert waiting.reason is Reason.NO_GPU_FITS
    assert waiting.message.startswith("gpu-b: ") and "; gpu-a: is cordoned" in waiting.message


def test_a_cordoned_host_finishes_what_it_has() -> None:
    decision = place([at("j", Stage.TRAINING)], [host(cordoned=True)], POLICY, NOW)
    assert [r.job for r in decision.stages] == ["j"]


def test_bytes_on_their_way_count_against_the_disk() -> None:
    coming = job("c", host="gpu-a", state=JobState.CLAIMED, step=Step.TRANSFER, input_bytes=6 * GIB)
    view = host(disk_free_bytes=20 * GIB)  # each needs its bytes once more for its frames
    jobs = [coming, job("j", input_bytes=5 * GIB)]
    assert only_waiting(jobs, [view]).reason is Reason.DISK_LOW
    arrived = dataclasses.replace(view, cached_bytes={"c": 6 * GIB})
    assert place(jobs, [arrived], POLICY, NOW).assignments == (("j", "gpu-a"),)


def test_an_empty_inventory_and_a_lost_host_are_told() -> None:
    assert only_waiting([job("j")], []).reason is Reason.NO_HOST
    waiting = only_waiting([at("j", Stage.TRAINING, "old")], [host()])
    assert waiting.reason is Reason.NO_HOST and "no longer in the inventory" in waiting.message


def test_a_device_that_needs_more_ram_than_the_host_has_is_not_waited_for() -> None:
    """However little RAM the job would take on a device that is too small for it."""
    devices = gpu("CPU", kind="cpu", total=24_000), gpu("GPU", total=4000)
    there = host("gpu-a", *devices, ram_total_mib=16_000, ram_free_mib=16_000)
    needs = Needs(guess=FirstGuess(reconstruct_mib=6000, reconstruct_cpu_mib=20_000))
    (left,) = place([at("j", Stage.TRAINING)], [there], Policy(needs=needs), NOW).waiting
    assert left.reason is Reason.RAM_TOO_SMALL
