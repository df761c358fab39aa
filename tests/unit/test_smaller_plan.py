"""A segment too large for every host or GPU gets done by a smaller plan, and only then."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.ledger import Ledger
from dispatcher.core.model import Job, JobKind, Stage
from dispatcher.core.need import Needs, Observation
from dispatcher.core.policy import Policy
from dispatcher.core.smaller_plan import SmallerPlan, plans_that_fit
from dispatcher.core.views import GpuView, HostView, Quarantine
from dispatcher.core.work_size import MAX_SHRINK, MAX_STRIDE, reduced

POLICY = Policy()


def plan_that_fits(job: Job, hosts: list[HostView], policy: Policy) -> SmallerPlan | None:
    return plans_that_fit([job], hosts, policy).get(job.id)


def stride_that_fits(job: Job, hosts: list[HostView], policy: Policy) -> int | None:
    plan = plan_that_fits(job, hosts, policy)
    if plan is None:
        return None
    assert plan.shrink == job.shrink, "fewer frames are enough"
    return plan.stride


def shrink_that_fits(job: Job, hosts: list[HostView], policy: Policy) -> int | None:
    plan = plan_that_fits(job, hosts, policy)
    if plan is None:
        return None
    assert plan.stride == job.stride, "fewer frames do not help"
    return plan.shrink


LONG = Job(
    id="j", kind=JobKind.RECONSTRUCT, acquisition="a", name="n", auv="x", created_at=0.0,
    frames=6000, pixels=960 * 540, cap=1_000_000, train_steps=7000,
)  # fmt: skip


def host(ram_mib: int, name: str = "h", **changes: object) -> HostView:
    gpu = GpuView(uuid=f"GPU-{name}", name="RTX", kind="cuda", total_mib=24_000, free_mib=24_000)
    made = HostView(
        name=name, reachable=True, gpus=(gpu,), ram_total_mib=ram_mib, ram_free_mib=ram_mib
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def vram(
    total_mib: int,
    name: str = "h",
    *,
    ram_mib: int = 64_000,
    reachable: bool = True,
    headroom_mib: int = 0,
) -> HostView:
    gpu = GpuView(
        uuid=f"GPU-{name}", name="RTX", kind="cuda", total_mib=total_mib, free_mib=total_mib
    )
    return host(ram_mib, name, gpus=(gpu,), reachable=reachable, headroom_mib=headroom_mib)


def test_the_smallest_stride_that_some_host_can_hold_is_taken() -> None:
    assert stride_that_fits(LONG, [host(64_000)], POLICY) is None
    assert stride_that_fits(LONG, [host(16_000)], POLICY) == 2
    assert stride_that_fits(LONG, [host(6_000, "small"), host(16_000)], POLICY) == 2
    assert stride_that_fits(LONG, [host(6_000)], POLICY) == 7
    assert stride_that_fits(LONG, [host(2_000)], POLICY) is None, "no stride helps"
    assert stride_that_fits(LONG, [], POLICY) is None


def test_a_host_that_could_hold_it_is_waited_for() -> None:
    away = host(64_000, "away", reachable=False)
    assert stride_that_fits(LONG, [host(16_000), away], POLICY) is None
    suspect = host(64_000, "suspect")
    failed = Quarantine(line="failed its self-test", failed_test=True)
    gpus = tuple(dataclasses.replace(gpu, quarantine=failed) for gpu in suspect.gpus)
    suspect = dataclasses.replace(suspect, gpus=gpus)
    assert stride_that_fits(LONG, [host(16_000), suspect], POLICY) is None
    without_gpu = host(64_000, "cpu-only", gpus=())
    assert stride_that_fits(LONG, [host(16_000), without_gpu], POLICY) == 2, "it never could"


def test_a_device_that_is_the_host_s_ram_is_ram() -> None:
    cpu = GpuView(uuid="CPU-h", name="Xeon", kind="cpu", total_mib=8000, free_mib=8000)
    assert stride_that_fits(LONG, [host(8000, gpus=(cpu,))], POLICY) == 2
    tiny = dataclasses.replace(cpu, kind="cuda", total_mib=2000)
    assert plan_that_fits(LONG, [host(64_000, gpus=(tiny,))], POLICY) is None, "it is not for RAM"


def test_the_fewest_steps_by_which_some_gpu_can_hold_it_are_taken() -> None:
    assert shrink_that_fits(LONG, [vram(6000)], POLICY) is None
    assert shrink_that_fits(LONG, [vram(5000)], POLICY) == 1
    assert shrink_that_fits(LONG, [vram(3000), vram(5000, "larger")], POLICY) == 1
    assert shrink_that_fits(LONG, [vram(4000)], POLICY) == 3, "smaller images need as much memory"
    assert shrink_that_fits(LONG, [vram(3000)], POLICY) == 4
    assert shrink_that_fits(LONG, [vram(2000)], POLICY) is None, "no plan is small enough"
    assert shrink_that_fits(dataclasses.replace(LONG, shrink=1), [vram(4000)], POLICY) == 3
    assert shrink_that_fits(LONG, [vram(5000), vram(24_000, "away", reachable=False)], POLICY) \
        is None  # fmt: skip


def test_headroom_is_no_memory_for_a_smaller_plan_either() -> None:
    assert shrink_that_fits(LONG, [vram(5000, headroom_mib=800)], POLICY) == 3


def test_what_was_learned_to_need_more_than_any_gpu_has_is_shrunk() -> None:
    run = Observation(
        stage=Stage.TRAINING, device="RTX", frames=600, pixels=960 * 540, cap=3_000_000,
        train_steps=7000, wall_s=1.0, cpu_s=1.0, peak_rss_mib=1200.0, peak_vram_mib=15_000.0,
        peak_disk_bytes=1,
    )  # fmt: skip
    policy = Policy(needs=Needs.learned_from([run] * 10))
    asked = dataclasses.replace(LONG, cap=3_100_000, stage=Stage.TRAINING)
    assert policy.need(asked, vram(12_288).gpus[0]).vram_mib > 12_288
    assert shrink_that_fits(asked, [vram(12_288)], POLICY) is None
    assert shrink_that_fits(asked, [vram(12_288)], policy) == 1


def test_more_memory_asked_for_than_any_gpu_has_ends_in_a_smaller_plan() -> None:
    asked = dataclasses.replace(LONG, stage=Stage.TRAINING, shrink=2, need_mib=13_500)
    assert shrink_that_fits(asked, [vram(12_288)], POLICY) == 3
    assert reduced(asked, shrink=3, stride=1).need_mib == 8100
    assert shrink_that_fits(dataclasses.replace(asked, shrink=MAX_SHRINK), [vram(12_288)], POLICY) \
        is None  # fmt: skip


def test_too_little_of_both_memories_takes_fewer_frames_and_a_smaller_plan() -> None:
    plan = plan_that_fits(LONG, [vram(5000, ram_mib=16_000)], POLICY)
    assert plan == SmallerPlan(1, 2)


def test_a_stitch_has_no_smaller_plan() -> None:
    stitch = dataclasses.replace(LONG, kind=JobKind.STITCH, stage=Stage.STITCH)
    assert plan_that_fits(stitch, [vram(3000, ram_mib=1500)], POLICY) is None


def test_a_stitch_of_forty_full_members_fits_where_one_of_two_does() -> None:
    stitch = dataclasses.replace(LONG, kind=JobKind.STITCH, stage=Stage.STITCH)
    small = Ledger(vram(3000, ram_mib=4000), POLICY)
    for members in (2, 3, 40):
        job = dataclasses.replace(stitch, cap=members * 1_000_000, frames=members * 300)
        assert small.capable(job), "its members are read one after the other, on the CPU"


def test_each_job_gets_a_stride_of_its_own() -> None:
    jobs = [dataclasses.replace(LONG, id=f"j{n}", frames=1000 * n) for n in range(1, 10)]
    found = plans_that_fit(jobs, [host(12_000)], POLICY)
    alone = {job.id: plan_that_fits(job, [host(12_000)], POLICY) for job in jobs}
    assert found == {job: plan for job, plan in alone.items() if plan is not None}
    assert len(set(found.values())) > 1 and len(found) < len(jobs)


def test_what_was_taken_already_is_only_ever_made_smaller() -> None:
    assert stride_that_fits(dataclasses.replace(LONG, stride=2), [host(6_000)], POLICY) == 7
    asked = dataclasses.replace(LONG, stride=2, stage=Stage.TRAINING, need_ram_mib=30_000)
    assert stride_that_fits(asked, [host(16_000)], POLICY) == 4
    assert stride_that_fits(dataclasses.replace(LONG, stride=MAX_STRIDE), [host(3_000)], POLICY) \
        is None  # fmt: skip


def test_what_runs_took_decides_as_it_does_in_placement() -> None:
    run = Observation(
        stage=Stage.TRAINING, device="RTX", frames=600, pixels=960 * 540, cap=1_000_000,
        train_steps=7000, wall_s=1.0, cpu_s=1.0, peak_rss_mib=1200.0, peak_vram_mib=2000.0,
        peak_disk_bytes=1,
    )  # fmt: skip
    light = Policy(needs=Needs.learned_from([run] * 10))
    assert stride_that_fits(LONG, [host(12_000)], POLICY) == 3
    assert stride_that_fits(LONG, [host(12_000)], light) is None


@given(
    frames=st.integers(1, 100_000),
    cap=st.integers(100, 20_000_000),
    sizes=st.lists(st.tuples(st.integers(500, 200_000), st.integers(500, 48_000)), max_size=4),
    need_ram=st.none() | st.integers(1, 100_000),
    need=st.none() | st.integers(1, 100_000),
    stride=st.integers(1, MAX_STRIDE),
    shrink=st.integers(0, MAX_SHRINK),
)
def test_a_plan_that_is_taken_fits_and_no_smaller_change_does(
    frames: int, cap: int, sizes: list[tuple[int, int]], need_ram: int | None, need: int | None,
    stride: int, shrink: int,
) -> None:  # fmt: skip
    job = dataclasses.replace(
        LONG, frames=frames, cap=cap, need_ram_mib=need_ram, need_mib=need, stride=stride,
        shrink=shrink,
    )  # fmt: skip
    hosts = [vram(size, f"h{n}", ram_mib=ram) for n, (ram, size) in enumerate(sizes)]

    def fits(one: Job) -> bool:
        return any(Ledger(h, POLICY).capable(one) for h in hosts)

    found = plan_that_fits(job, hosts, POLICY)
    changes = [
        SmallerPlan(steps, every)
        for steps in range(shrink, MAX_SHRINK + 1)
        for every in range(stride, MAX_STRIDE + 1)
    ]
    fitting = [p for p in changes if fits(reduced(job, shrink=p.shrink, stride=p.stride))]
    if fits(job):
        assert found is None
    else:
        assert found == (fitting[0] if fitting else None)
