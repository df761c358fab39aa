"""The least time that any plan could take for the jobs of bench/simulate.py."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict

from bench.simulated_farm import MODELS, Model, fault_for, seconds_for
from dispatcher.core.forecast_result import Played
from dispatcher.core.model import RECONSTRUCT_STAGES, Job, JobKind, JobState, Stage
from dispatcher.core.need import Needs
from dispatcher.core.outlook import quantile
from dispatcher.core.place import SLOT_OF
from dispatcher.core.snapshot import Snapshot
from dispatcher.core.views import GpuView


def lower_bound_s(snapshot: Snapshot, run: Played, seed: int) -> tuple[float, dict[str, float]]:
    """Seconds, and what they are made of. No plan for the jobs that ended done can take less than

    - device: for prices p of a model's slot, sum over jobs of min over the models that hold one of
      p * seconds there, over the sum of p of all training slots (the dual of the fractional
      assignment: a bound whatever p is). p is how much faster the model was than the
      largest with the jobs it holds, or 0 below a memory size: then it is the bound of what only
      larger GPUs can hold. To it comes what each slot must stand idle: until its first job can
      be trained, and from its last one to the end of that survey. No two slots have the same
      first job or the same last, so the shortest ways of all are given to the dearest slots;
    - slots: the seconds of all extract (sfm) stages over all extract (sfm) slots;
    - chain: the longest way of one segment through its transfer, its stages on the fastest device
      that holds it, and the two stitches that must follow.

    A training that fails goes on from its checkpoint, where it is tried again on its host, so that
    it takes no more than one that does not: only half of one comes to it for each that ends
    there. What is trained anew elsewhere is left out.
    """
    needs = snapshot.policy.needs
    device = {model.name: _device(model) for model in MODELS}
    slots: dict[str, float] = defaultdict(float)
    trains: dict[str, int] = defaultdict(int)
    for host in snapshot.hosts:
        trains[host.gpus[0].name] += host.max_parallel["train"]
        for slot in ("extract", "sfm"):
            slots[slot] += host.max_parallel[slot]
    link = max(host.link_bytes_s for host in snapshot.hosts)
    present = [model for model in MODELS if trains[model.name]]
    work: dict[str, float] = defaultdict(float)
    trainings: list[dict[Model, float]] = []  # seconds on each model that holds the job
    leads: list[float] = []
    tails: list[float] = []
    longest = 0.0
    position = RECONSTRUCT_STAGES.index(Stage.TRAINING)
    stitch_s = 2 * min(_stitch_s(needs, gpu) for gpu in device.values())
    for first in snapshot.jobs:
        job = run.jobs[first.id]  # with the plan it was done by, where memory made that smaller
        took: dict[Stage, float] = {
            stage: seconds_for(seed, at, needs.of(at, None))
            for stage in RECONSTRUCT_STAGES
            if stage is not Stage.TRAINING
            for at in (dataclasses.replace(job, stage=stage),)
        }
        training = dataclasses.replace(job, stage=Stage.TRAINING, attempt=position + 1)
        held = {
            model: seconds_for(seed, training, need)
            for model in present
            for need in (needs.of(training, device[model.name]),)
            if need.vram_mib <= model.mib - snapshot.hosts[0].headroom_mib
        }
        before = job.input_bytes / link + sum(took[s] for s in RECONSTRUCT_STAGES[:position])
        after = sum(took[s] for s in RECONSTRUCT_STAGES[position + 1 :]) + stitch_s
        fault = fault_for(seed, training)
        leads.append(before)
        tails.append(after if job.state is JobState.DONE else 0.0)
        if fault is not None and held:
            lost = {model: fault[1] * seconds for model, seconds in held.items()}
            # Its next attempt may be another slot's first, and the failed one a slot's last: then
            # the rest of it is still to be done.
            leads.append(before + min(lost.values()))
            if job.state is JobState.DONE:
                tails.append((1.0 - fault[1]) * min(held.values()) + after)
            else:
                tails.append(0.0)
                trainings.append(lost)
        if job.state is not JobState.DONE:
            continue
        trainings.append(held)
        for stage, seconds in took.items():
            work[SLOT_OF[stage]] += seconds
        longest = max(longest, before + min(held.values()) + after)
    leads.sort()
    tails.sort()
    price = _prices(trainings, present)
    bounds = {}
    for least in present:
        able = [model for model in present if model.mib >= least.mib]
        asked = math.fsum(
            min(price[model] * seconds for model, seconds in held.items())
            for held in trainings
            if all(model in able for model in held)
        )
        slot_prices = sorted(
            (price[model] for model in able for _ in range(trains[model.name])), reverse=True
        )
        idle = sum(p * (a + b) for p, a, b in zip(slot_prices, leads, tails, strict=False))
        bounds[f"device_{least.mib // 1024}_gib"] = (asked + idle) / math.fsum(slot_prices)
    bounds |= {slot: work[slot] / slots[slot] for slot in slots}
    bounds["chain"] = longest
    return max(bounds.values()), bounds


def _prices(trainings: list[dict[Model, float]], present: list[Model]) -> dict[Model, float]:
    largest = present[-1]
    price = {}
    for model in present:
        both = [held for held in trainings if model in held and largest in held]
        there = math.fsum(held[model] for held in both)
        price[model] = math.fsum(held[largest] for held in both) / there if there else 0.0
    return price


def _device(model: Model) -> GpuView:
    return GpuView(uuid="", name=model.name, kind="cuda", total_mib=model.mib, free_mib=model.mib)


def _stitch_s(needs: Needs, gpu: GpuView) -> float:
    stitch = Job(
        id="", kind=JobKind.STITCH, acquisition="", name="", auv=None, created_at=0.0,
        stage=Stage.STITCH,
    )  # fmt: skip
    return quantile(needs.of(stitch, gpu).seconds, 0.0)
