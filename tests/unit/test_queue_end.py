"""The end of the queue: all hosts end at about the same time."""

from __future__ import annotations

import dataclasses
import statistics

import pytest

from dispatcher.core.forecast import play
from dispatcher.core.model import RECONSTRUCT_STAGES, Job, JobKind, Reason, Stage
from dispatcher.core.need import Need, Needs, Observation
from dispatcher.core.outlook import chance
from dispatcher.core.place import place
from dispatcher.core.policy import Policy
from dispatcher.core.snapshot import Snapshot
from dispatcher.core.views import GpuView, HostView
from tests.unit.farms import GIB, NOW, at, gpu, host, job

LONG = (Stage.FRAME_EXTRACTION, Stage.TRAINING)


def lasts(seed: int, name: str, stage: Stage) -> float:
    """1.0 to 1.9 s of two stages, the others nothing."""
    return 1.0 + 0.9 * chance(f"{seed}/{name}/{stage}") if stage in LONG else 0.0


def known(runs: int, seconds: float = 1.45) -> Needs:
    """Needs of small jobs, learned from so many runs."""
    small = Observation(
        stage=Stage.TRAINING, device="x", frames=5, pixels=64 * 48, cap=1000, wall_s=seconds,
        cpu_s=0.1, peak_rss_mib=100, peak_vram_mib=100, peak_disk_bytes=1000, train_steps=100,
    )  # fmt: skip
    return Needs.learned_from(
        dataclasses.replace(
            small,
            stage=stage,
            device="x" if stage is Stage.TRAINING else "",
            wall_s=seconds if stage in LONG else 0.001,
        )
        for stage in RECONSTRUCT_STAGES
        for _ in range(runs)
    )


def small_job(name: str, number: int) -> Job:
    return job(
        name, created_at=float(number), input_bytes=70_000, frames=5, pixels=64 * 48, cap=1000,
        train_steps=100,
    )  # fmt: skip


def single(name: str, **values: object) -> HostView:
    """One of everything."""
    ones = {"extract": 1, "sfm": 1, "train": 1, "stitch": 1}
    return host(name, gpu(f"GPU-{name}"), max_parallel=ones, **values)


def over_bound(seed: int, runs: int) -> float:
    """24 jobs of two stages on four equal hosts: the makespan over the least possible."""
    jobs = [small_job(f"j{n:02d}", n) for n in range(24)]
    played = play(
        Snapshot(
            now=NOW,
            jobs=tuple(jobs),
            hosts=tuple(single(f"h{n}") for n in range(4)),
            policy=Policy(needs=known(runs)),
        ),
        seconds=lambda one, _gpu, _need: lasts(seed, one.id, one.stage),
    )
    extract, train = ([lasts(seed, one.id, stage) for one in jobs] for stage in LONG)
    bound = max(sum(extract) / 4 + min(train), sum(train) / 4 + min(extract))
    return (max(played.ended.values()) - NOW) / bound


@pytest.mark.parametrize("runs", [0, 2, 40])
def test_four_equal_hosts_end_together(runs: int) -> None:
    """However much is known of how long stages take."""
    assert statistics.fmean(over_bound(seed, runs) for seed in range(10)) <= 1.15


def test_the_last_jobs_wait_for_the_host_that_first_needs_them() -> None:
    policy = Policy(needs=known(40))
    there = [
        dataclasses.replace(at(f"{where}{n}", stage, where), frames=5, pixels=64 * 48, cap=1000,
                            train_steps=100)
        for where in ("a", "b")
        for n, stage in enumerate([Stage.TRAINING, Stage.FRAME_EXTRACTION, Stage.VALIDATION])
    ]  # fmt: skip
    hosts = [single("a"), single("b")]
    (left,) = (
        one
        for one in place([*there, small_job("new", 0)], hosts, policy, NOW).waiting
        if one.job == "new"
    )
    assert left.reason is Reason.SLOT_BUSY and "has enough to keep busy" in left.message
    many = [small_job(f"new-{n}", n) for n in range(9)]
    assert place([*there, *many], hosts, policy, NOW).assignments, "with many it need not wait"
    needy = [one for one in there if one.id != "b2"]
    assert place([*needy, small_job("new", 0)], hosts, policy, NOW).assignments == (("new", "b"),)


def test_a_long_job_does_not_begin_last_of_all() -> None:
    """It would end long after the short ones, which came before it."""
    policy = Policy(needs=known(40, 100.0))
    short = [small_job(f"s{n}", n) for n in range(4)]
    long = dataclasses.replace(small_job("long", 9), cap=4_000_000, train_steps=7000)
    hosts = [single("a", disk_free_bytes=500 * GIB)]

    def seconds(_job: Job, _gpu: GpuView | None, need: Need) -> float:
        return need.seconds.likely

    assert place([*short, long], hosts, policy, NOW).assignments[0] == ("long", "a")
    endless = [small_job(f"e{n:02d}", n) for n in range(30)]
    first = place([*endless, long], hosts, policy, NOW).assignments[0]
    assert first == ("e00", "a"), "while there is much to do, age counts"


def test_the_longest_first_does_not_take_from_an_acquisition_its_share() -> None:
    policy = Policy(needs=known(40, 100.0))
    short = dataclasses.replace(small_job("short", 0), acquisition="other")
    waiting = [
        dataclasses.replace(small_job(f"l{n}", 1 + n), cap=4_000_000, train_steps=7000)
        for n in range(3)
    ]
    hosts = [single(name, disk_free_bytes=500 * GIB) for name in ("a", "b")]
    assert place([short, *waiting], hosts, policy, NOW).assignments[0][0] == "l0"
    holding = [at(f"t{n}", Stage.VALIDATION, hosts[n].name) for n in range(2)]
    decided = place([short, *waiting, *holding], hosts, policy, NOW).assignments
    assert decided[0][0] == "short", "the other has two jobs under way, this one none"


def test_what_has_no_known_length_does_not_stand_back_at_the_end() -> None:
    """A stitch trains nothing: a survey would wait for it behind all longer jobs."""
    segments = [small_job(f"s{n}", n) for n in range(4)]
    stitch = dataclasses.replace(
        small_job("stitch", 9), kind=JobKind.STITCH, stage=Stage.STITCH, acquisition="other"
    )
    decided = place([*segments, stitch], [single("a")], Policy(needs=known(40, 100.0)), NOW)
    assert decided.assignments[0] == ("stitch", "a")
