"""A stitch uses no device: it waits for RAM and cores only."""

from __future__ import annotations

import pytest

from dispatcher.core.model import Job, JobKind, Reason, Stage
from dispatcher.core.place import Policy, place
from dispatcher.core.views import GpuView, HostView
from tests.unit.farms import NOW, SUSPECT, at, gpu, host, job, running

POLICY = Policy()
BARE = HostView(name="bare", reachable=True, disk_free_bytes=1 << 37, cpu_cores=4)


def stitch(name: str = "reef-stitch-a-v1", where: str | None = None) -> Job:
    made = job(name, kind=JobKind.STITCH, stage=Stage.STITCH)
    if where is None:
        return made
    return at(name, Stage.STITCH, where, kind=JobKind.STITCH)


def test_it_starts_beside_a_training_that_has_the_only_gpu() -> None:
    full = host("gpu-a", gpu(total=11_000), cpu_cores=8, ram_total_mib=32_000, ram_free_mib=32_000)
    trains = running("t", Stage.TRAINING, mib=11_000, device="GPU-1")
    decided = place([trains, stitch(where="gpu-a")], [full], POLICY, NOW)
    (one,) = decided.stages
    assert (one.slot, one.gpu, one.mib, one.ram_mib) == ("stitch", None, 0, 2000)
    assert one.cpu_cores > 0


def test_it_starts_where_the_gpus_cannot_be_read_or_are_suspect() -> None:
    old = host("gpu-a", gpu(probe_age_s=POLICY.probe_stale_s + 1))
    assert place([stitch(where="gpu-a")], [old], POLICY, NOW).stages


@pytest.mark.parametrize(
    "device", [gpu(probe_age_s=POLICY.probe_stale_s + 1), gpu(quarantine=SUSPECT)]
)
def test_it_is_given_a_host_whose_gpus_may_not_be_used(device: GpuView) -> None:
    decided = place([stitch(), job("a")], [host("gpu-a", device)], POLICY, NOW)
    assert decided.assignments == (("reef-stitch-a-v1", "gpu-a"),)


def test_segments_that_no_host_can_train_any_more_keep_no_host_from_it() -> None:
    stuck = [at(f"s{n}", Stage.TRAINING, "bare") for n in range(5)]
    decided = place([*stuck, stitch()], [BARE], POLICY, NOW)
    assert decided.assignments == (("reef-stitch-a-v1", "bare"),)


def test_a_host_without_a_gpu_takes_it_from_first_to_last() -> None:
    decided = place([stitch()], [BARE], POLICY, NOW)
    assert decided.assignments == (("reef-stitch-a-v1", "bare"),)
    assert place([stitch(where="bare")], [BARE], POLICY, NOW).stages
    assert not place([job("a")], [BARE], POLICY, NOW).assignments, "nobody could train it"


def test_a_host_without_a_gpu_is_as_good_as_any_when_it_is_less_busy() -> None:
    busy = host("gpu-a", gpu())
    trains = running("t", Stage.TRAINING, mib=6000, device="GPU-1")
    assert place([trains, stitch()], [busy, BARE], POLICY, NOW).assignments == (
        ("reef-stitch-a-v1", "bare"),
    )


def test_without_the_ram_it_waits_and_says_so() -> None:
    full = host("gpu-a", cpu_cores=8, ram_total_mib=32_000, ram_free_mib=1500)
    decided = place([stitch(where="gpu-a")], [full], POLICY, NOW)
    assert not decided.stages
    assert decided.waiting[0].reason is Reason.RAM_LOW
    assert "2000 MiB" in decided.waiting[0].message


def test_stitches_fill_a_host_as_other_jobs_do() -> None:
    """Else all of a large survey's stitches, and their inputs, would come to one host."""
    there = [stitch(f"s{n}", where="bare") for n in range(10)]
    decided = place([*there, stitch()], [BARE], POLICY, NOW)
    assert not decided.assignments
    (waits,) = [one for one in decided.waiting if one.job == "reef-stitch-a-v1"]
    assert waits.reason is Reason.SLOT_BUSY
