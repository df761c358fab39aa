"""The bound of bench/simulate.py: no plan takes less, and of one slot it is known."""

from __future__ import annotations

import dataclasses
import math

import pytest

from bench.simulated_bound import lower_bound_s
from bench.simulated_farm import fault_for, make_snapshot, seconds_for
from dispatcher.core.forecast import play
from dispatcher.core.forecast_result import Played
from dispatcher.core.model import RECONSTRUCT_STAGES, JobState, Stage
from dispatcher.core.policy import Order
from dispatcher.core.snapshot import Snapshot

BEFORE = RECONSTRUCT_STAGES[: RECONSTRUCT_STAGES.index(Stage.TRAINING)]


def played(snapshot: Snapshot, seed: int) -> Played:
    return play(
        snapshot,
        seconds=lambda job, _gpu, need: seconds_for(seed, job, need),
        fault=lambda job: fault_for(seed, job),
    )


@pytest.mark.parametrize("order", ["earliest_finish", "most_free", "best_fit"])
@pytest.mark.parametrize(("hosts", "seed"), [(2, 0), (6, 1)])
def test_no_plan_takes_less(order: Order, hosts: int, seed: int) -> None:
    snapshot = make_snapshot(hosts, 60, seed)
    snapshot = dataclasses.replace(
        snapshot, policy=dataclasses.replace(snapshot.policy, order=order)
    )
    run = played(snapshot, seed)
    bound, _ = lower_bound_s(snapshot, run, seed)
    assert bound <= max(run.ended.values()) - snapshot.now


def test_one_slot_trains_one_after_the_other() -> None:
    """From the first job's arrival to the end of what follows the last: their least of all jobs."""
    seed = 6
    snapshot = make_snapshot(1, 12, seed)
    (host,) = snapshot.hosts
    (gpu,) = host.gpus
    run = played(snapshot, seed)
    needs = snapshot.policy.needs
    jobs = [run.jobs[job.id] for job in snapshot.jobs]
    assert {job.state for job in jobs} == {JobState.DONE}
    tries = [dataclasses.replace(one, stage=Stage.TRAINING, attempt=6) for one in jobs]
    assert not any(map(fault_for, [seed] * len(tries), tries)), "another seed: none is to fail"

    def took(stages: tuple[Stage, ...]) -> list[float]:
        return [
            sum(
                seconds_for(seed, at, needs.of(at, gpu if stage is Stage.TRAINING else None))
                for stage in stages
                for at in (dataclasses.replace(job, stage=stage),)
            )
            for job in jobs
        ]

    wire = [job.input_bytes / host.link_bytes_s for job in jobs]
    lead = min(map(sum, zip(wire, took(BEFORE), strict=True)))
    after = RECONSTRUCT_STAGES[len(BEFORE) + 1 :]
    least = lead + math.fsum(took((Stage.TRAINING,))) + min(took(after))
    bound, bounds = lower_bound_s(snapshot, run, seed)
    assert bound == bounds["device_12_gib"]
    assert least < bound < 1.01 * least, "two stitches of a survey must follow as well"
