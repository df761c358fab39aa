"""Refinement by budget, and the optimizer that follows it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from worker_agent.training.adam import Adam
from worker_agent.training.gaussians import Parameters
from worker_agent.training.schedule import Schedule
from worker_agent.training.strategy import BudgetStrategy

COUNT = 12
PLAN = Schedule(steps=1000, cap=16, sh_degree=1, initial=COUNT)
LAST = max(s for s in range(1001) if PLAN.refines_at(s))


def parameters(*, scale: float = 0.001) -> Parameters:
    generator = torch.Generator().manual_seed(0)
    values = {
        "means": torch.randn(COUNT, 3, generator=generator),
        "scales": torch.full((COUNT, 3), math.log(scale)),
        "quats": torch.randn(COUNT, 4, generator=generator),
        "opacities": torch.full((COUNT,), 1.0),
        "sh0": torch.randn(COUNT, 1, 3, generator=generator),
        "shN": torch.zeros(COUNT, 3, 3),
    }
    return {name: torch.nn.Parameter(value) for name, value in values.items()}


def meta(scores: Tensor) -> dict[str, object]:
    means2d = torch.zeros(1, len(scores), 2)
    means2d.absgrad = torch.stack([scores, torch.zeros(len(scores))], -1)[None]  # type: ignore[attr-defined]
    return {
        "means2d": means2d,
        "radii": torch.ones(1, len(scores), 2, dtype=torch.int32),
        "width": 2,
        "height": 2,
    }


def refined(values: Parameters, scores: Tensor, warnings: list[str]) -> Adam:
    adam = Adam(values)
    strategy = BudgetStrategy(PLAN, COUNT, seed=0, warn=warnings.append)
    strategy.observe(meta(scores))
    strategy.refine(LAST, adam)
    return adam


def test_the_largest_gradients_are_divided_up_to_the_budget() -> None:
    values = parameters()
    colors = values["sh0"].data.clone()
    scores = torch.arange(COUNT, dtype=torch.float32) + 1.0
    adam = refined(values, scores, [])
    assert len(adam.parameters["means"]) == PLAN.cap
    assert torch.equal(adam.parameters["sh0"].data[COUNT:], colors[[8, 9, 10, 11]])


def test_small_gaussians_are_copied_and_share_their_opacity() -> None:
    values = parameters()
    adam = refined(values, torch.arange(COUNT, dtype=torch.float32), [])
    opacity = torch.sigmoid(adam.parameters["opacities"].data)
    parent, child = opacity[8], opacity[COUNT]
    before = torch.sigmoid(torch.tensor(1.0))
    assert float(1 - (1 - parent) * (1 - child)) == pytest.approx(float(before), abs=1e-6)
    assert torch.equal(opacity[:8], before.expand(8))


def test_large_gaussians_are_replaced_by_two_smaller_ones() -> None:
    adam = refined(parameters(scale=0.1), torch.arange(COUNT, dtype=torch.float32), [])
    scales = adam.parameters["scales"].data
    assert len(scales) == PLAN.cap
    smaller = (scales < math.log(0.09)).all(-1)
    assert int(smaller.sum()) == 2 * (PLAN.cap - COUNT)


def test_transparent_and_broken_gaussians_are_removed() -> None:
    values = parameters()
    values["opacities"].data[:3] = -9.0
    values["means"].data[3, 0] = math.nan
    adam = refined(values, torch.zeros(COUNT), [])
    assert len(adam.parameters["means"]) == COUNT - 4
    assert torch.isfinite(adam.parameters["means"]).all()


def test_stalled_growth_is_reported_once_and_in_one_line() -> None:
    warnings: list[str] = []
    strategy = BudgetStrategy(PLAN, COUNT, seed=0, warn=warnings.append)
    adam = Adam(parameters())
    for _ in range(5):
        strategy.refine(LAST, adam)
    assert len(warnings) == 1
    assert "densification stalled" in warnings[0] and "\n" not in warnings[0]


def test_growth_that_falls_far_short_is_reported_and_growth_that_does_not_is_not() -> None:
    for useful, alarms in ((0.05, 1), (0.5, 0)):
        warnings: list[str] = []
        plan = dataclasses.replace(PLAN, cap=10 * COUNT)
        strategy = BudgetStrategy(plan, COUNT, seed=0, warn=warnings.append)
        adam = Adam(parameters())
        for _ in range(3):
            now = len(adam.parameters["means"])
            scores = torch.zeros(now)
            scores[: max(1, round(useful * (plan.cap - now)))] = 1.0
            strategy.observe(meta(scores))
            strategy.refine(LAST, adam)
        assert len(warnings) == alarms


def test_adam_equals_torch_and_keeps_the_moments_of_survivors() -> None:
    values = parameters()
    reference = {name: torch.nn.Parameter(value.data.clone()) for name, value in values.items()}
    rates = PLAN.learning_rates(0)
    groups = [{"params": [p], "lr": rates[name]} for name, p in reference.items()]
    theirs = torch.optim.Adam(groups, eps=1e-15)
    mine = Adam(values)
    for step in range(4):
        for source in (mine.parameters, reference):
            generator = torch.Generator().manual_seed(step)
            for value in source.values():
                value.grad = torch.randn(value.shape, generator=generator)
        mine.step(rates)
        theirs.step()
    for name, value in mine.parameters.items():
        assert torch.allclose(value, reference[name], rtol=1e-5, atol=1e-7), name

    keep = torch.tensor([1, 4, 5])
    moments = mine.state()["first"]
    assert isinstance(moments, dict)
    kept = moments["means"][keep].clone()
    mine.replace(keep, {name: value.data[:2] for name, value in mine.parameters.items()})
    after = mine.state()["first"]
    assert isinstance(after, dict)
    assert torch.equal(after["means"][:3], kept) and not after["means"][3:].any()
