"""A segment too large for every host's RAM gets done with fewer frames, and only then."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.ledger import Ledger
from dispatcher.core.model import Job, JobKind, Stage
from dispatcher.core.need import Needs, Observation
from dispatcher.core.policy import Policy
from dispatcher.core.shape import MAX_STRIDE, thinned
from dispatcher.core.thinning import strides_that_fit
from dispatcher.core.views import GpuView, HostView, Quarantine

POLICY = Policy()


def stride_that_fits(job: Job, hosts: list[HostView], policy: Policy) -> int | None:
    return strides_that_fit([job], hosts, policy).get(job.id)


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
    tiny = dataclasses.replace(cpu, kind="cuda", total_mib=4000)
    assert stride_that_fits(LONG, [host(64_000, gpus=(tiny,))], POLICY) is None, "it is not for RAM"


def test_each_job_gets_a_stride_of_its_own() -> None:
    jobs = [dataclasses.replace(LONG, id=f"j{n}", frames=1000 * n) for n in range(1, 10)]
    found = strides_that_fit(jobs, [host(12_000)], POLICY)
    alone = {job.id: stride_that_fits(job, [host(12_000)], POLICY) for job in jobs}
    assert found == {job: stride for job, stride in alone.items() if stride is not None}
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
    rams=st.lists(st.integers(500, 200_000), max_size=4),
    need=st.none() | st.integers(1, 100_000),
    stride=st.integers(1, MAX_STRIDE),
)
def test_a_stride_that_is_taken_fits_and_the_one_before_it_does_not(
    frames: int, rams: list[int], need: int | None, stride: int
) -> None:
    job = dataclasses.replace(LONG, frames=frames, need_ram_mib=need, stride=stride)
    hosts = [host(ram, f"h{number}") for number, ram in enumerate(rams)]

    def fits(one: Job) -> bool:
        return any(Ledger(h, POLICY).small_ram(one) is None for h in hosts)

    found = stride_that_fits(job, hosts, POLICY)
    if found is None:
        return
    assert stride < found <= MAX_STRIDE and not fits(job)
    assert fits(thinned(job, found))
    assert found == stride + 1 or not fits(thinned(job, found - 1))
