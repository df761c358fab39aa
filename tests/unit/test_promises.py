"""Of a host's memory, disk, cores and decoder sessions nothing is promised twice, and what is left
is used: whatever was promised before, and whatever others have."""

from __future__ import annotations

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.core.model import Job, Reason, Stage
from dispatcher.core.place import Policy, place
from tests.unit.farms import GIB, NOW, at, gpu, host, running

POLICY = Policy()


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_shared_gpu_is_filled_and_never_beyond(data: st.DataObject) -> None:
    """Each MiB counts once: what is promised and used, what others have, what nobody lists (less
    than none: it came or went between two figures of the probe)."""
    mib = st.integers(300, 8000)
    total, headroom = data.draw(st.integers(4000, 24000)), data.draw(st.sampled_from([0, 512]))
    foreign, unlisted = data.draw(st.integers(0, 3000)), data.draw(st.integers(-3000, 3000))
    promised = data.draw(st.lists(mib, max_size=4))
    before = [running(f"r{n}", Stage.TRAINING, held, "GPU-1") for n, held in enumerate(promised)]
    own = {(one.id, 1): data.draw(st.integers(0, 9000)) for one in before}
    free = min(total, max(0, total - foreign - sum(own.values()) - unlisted))
    age_s = data.draw(st.sampled_from([0.0, 0.0, 0.0, POLICY.probe_stale_s + 1.0]))
    device = gpu("GPU-1", total, free_mib=free, foreign_mib=foreign, own_mib=own, probe_age_s=age_s)
    view = host("gpu-a", device, max_parallel={"train": 9}, headroom_mib=headroom)
    waits = [
        at(f"w{n}", Stage.TRAINING, need_mib=need, assigned_at=NOW)
        for n, need in enumerate(data.draw(st.lists(mib, min_size=1, max_size=4)))
    ]
    decision = place([*before, *waits], [view], POLICY, NOW)
    if age_s:
        assert not decision.stages
        assert {one.reason for one in decision.waiting} <= {Reason.PROBE_STALE, Reason.NO_GPU_FITS}
        return
    asked = sum(one.mib for one in decision.stages)
    counted = [(held, own[one.id, 1]) for one, held in zip(before, promised, strict=True)]
    unused = sum(max(0, held - used) for held, used in counted)
    reserved = sum(max(held, used) for held, used in counted)
    left = min(free - unused, total - reserved - foreign) - headroom - asked
    assert left >= 0 or not asked
    started = {one.job for one in decision.stages}
    assert all(POLICY.need(one, device).vram_mib > left for one in waits if one.id not in started)


@given(st.integers(0, 4), st.integers(0, 3), st.integers(0, 3), st.integers(1, 5))
@settings(deadline=None)
def test_sessions_of_a_decoder_are_promised_as_far_as_they_go(
    most: int, others: int, working: int, waits: int
) -> None:
    device = gpu("GPU-1", decode_sessions=others, max_decode_sessions=most)
    view = host("gpu-a", device, max_parallel={"extract": 9})
    before = [running(f"r{n}", Stage.FRAME_EXTRACTION, 0, "GPU-1") for n in range(working)]
    for n, one in enumerate(before):
        assert one.reservation is not None
        held = dataclasses.replace(one.reservation, decode_sessions=1)
        before[n] = dataclasses.replace(one, reservation=held)
    new = [at(f"w{n}", Stage.FRAME_EXTRACTION) for n in range(waits)]
    decision = place([*before, *new], [view], POLICY, NOW)
    given_sessions = sum(one.decode_sessions for one in decision.stages)
    assert len(decision.stages) == waits, "what gets none decodes on the CPU"
    assert given_sessions == min(waits, max(0, most - others - working))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_disk_ram_and_cores_are_promised_once(data: st.DataObject) -> None:
    def holding(number: int) -> Job:
        one = running(f"r{number}", Stage.FRAME_EXTRACTION)
        assert one.reservation is not None
        held = dataclasses.replace(
            one.reservation,
            disk_bytes=data.draw(st.integers(0, 20)) * GIB,
            ram_mib=data.draw(st.integers(0, 9000)),
            cpu_cores=float(data.draw(st.integers(0, 2))),
        )
        return dataclasses.replace(one, reservation=held)

    before = [holding(n) for n in range(data.draw(st.integers(0, 3)))]
    view = host(
        cpu_cores=data.draw(st.integers(1, 8)),
        ram_total_mib=32_000,
        ram_free_mib=data.draw(st.integers(4_000, 32_000)),
        disk_free_bytes=data.draw(st.integers(0, 80)) * GIB,
        max_parallel={"extract": 9, "sfm": 9},
    )
    stages = st.sampled_from([Stage.FRAME_EXTRACTION, Stage.COLMAP_RECONSTRUCTION])
    waits = [
        at(f"w{n}", data.draw(stages), input_bytes=data.draw(st.integers(0, 12)) * GIB,
           frames=data.draw(st.sampled_from([100, 900])))
        for n in range(data.draw(st.integers(1, 5)))
    ]  # fmt: skip
    new = place([*before, *waits], [view], POLICY, NOW).stages
    every = [*(one.reservation for one in before if one.reservation), *new]
    disk, ram = sum(one.disk_bytes for one in every), sum(one.ram_mib for one in every)
    assert disk <= view.disk_free_bytes or not any(one.disk_bytes for one in new)
    assert ram <= view.ram_free_mib or not any(one.ram_mib for one in new)
    cores = sum(one.cpu_cores for one in every)
    assert cores <= view.cpu_cores or not any(one.cpu_cores for one in new)
