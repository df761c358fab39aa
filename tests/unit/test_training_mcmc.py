"""The MCMC strategy: how one gaussian becomes several, where the dead ones go, what noise does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from worker_agent.training.adam import Adam
from worker_agent.training.gaussians import Parameters
from worker_agent.training.mcmc import McmcStrategy, divided
from worker_agent.training.schedule import Schedule

COUNT = 40
PLAN = Schedule(steps=1000, cap=60, sh_degree=1, initial=COUNT)
LAST = max(s for s in range(1001) if PLAN.refines_at(s))


def parameters(opacity: Tensor) -> Parameters:
    generator = torch.Generator().manual_seed(0)
    values = {
        "means": torch.randn(COUNT, 3, generator=generator),
        "scales": torch.log(torch.tensor([0.2, 0.02, 0.002])).repeat(COUNT, 1),
        "quats": torch.randn(COUNT, 4, generator=generator),
        "opacities": torch.logit(opacity),
        "sh0": torch.arange(COUNT, dtype=torch.float32)[:, None, None].repeat(1, 1, 3),
        "shN": torch.zeros(COUNT, 3, 3),
    }
    return {name: torch.nn.Parameter(value) for name, value in values.items()}


def refined(opacity: Tensor, *, seed: int = 0) -> Adam:
    adam = Adam(parameters(opacity))
    for name, value in adam.parameters.items():
        value.grad = torch.ones_like(adam.parameters[name])
    adam.step({name: 0.0 for name in adam.parameters})
    McmcStrategy(PLAN, seed=seed).refine(LAST, adam)
    return adam


@pytest.mark.parametrize("opacity", [0.02, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("parts", [2, 3, 10, 51])
def test_the_parts_together_cover_as_much_as_the_whole(opacity: float, parts: int) -> None:
    part, factor = divided(torch.tensor([opacity]), torch.tensor([parts]))
    x = np.linspace(-12.0, 12.0, 20_001)
    whole = opacity * np.exp(-(x**2) / 2)
    one = float(part) * np.exp(-(x**2) / (2 * float(factor) ** 2))
    together = 1.0 - (1.0 - one) ** parts
    assert together.sum() == pytest.approx(whole.sum(), rel=1e-4)
    assert together.max() == pytest.approx(opacity, rel=1e-4)


def test_the_dead_go_where_others_are_and_the_number_grows_to_the_budget() -> None:
    opacity = torch.full((COUNT,), 0.001)
    opacity[[3, 7, 11]] = torch.tensor([0.8, 0.1, 0.8])
    after = refined(opacity).parameters
    assert len(after["means"]) == PLAN.cap
    of = after["sh0"].data[:, 0, 0]
    assert set(of.tolist()) == {3.0, 7.0, 11.0}
    assert int((of == 3.0).sum()) > 3 * int((of == 7.0).sum()) > 0
    copies = int((of == 7.0).sum())
    shared = torch.sigmoid(after["opacities"].data[of == 7.0])
    assert torch.equal(shared, shared[:1].expand(copies))
    assert float(1 - (1 - shared[0]) ** copies) == pytest.approx(0.1, rel=1e-3)


def test_what_was_not_drawn_keeps_its_moments_and_children_begin_with_none() -> None:
    opacity = torch.full((COUNT,), 0.3)
    opacity[0] = 0.001
    adam = refined(opacity)
    colors = adam.parameters["sh0"].data[:, 0, 0]
    values, number = torch.unique(colors, return_counts=True)
    alone = torch.isin(colors, values[number == 1])
    moments = adam.state()["first"]
    assert isinstance(moments, dict)
    assert 0 < int(alone.sum()) < COUNT
    assert bool((moments["means"][alone] != 0).all())
    assert not moments["means"][~alone].any()
    assert 0.0 not in colors


def test_draws_follow_from_the_seed_alone() -> None:
    opacity = torch.linspace(0.01, 0.9, COUNT)
    one, same, other = (refined(opacity, seed=seed).parameters["sh0"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_with_every_gaussian_dead_nothing_is_made_up() -> None:
    assert len(refined(torch.full((COUNT,), 0.001)).parameters["means"]) == 0


def test_noise_moves_the_transparent_along_their_own_axes() -> None:
    opacity = torch.full((COUNT,), 0.9)
    opacity[: COUNT // 2] = 0.0005
    values = parameters(opacity)
    values["quats"].data[:] = torch.tensor([math.cos(math.pi / 4), 0, 0, math.sin(math.pi / 4)])
    before = values["means"].data.clone()
    strategy = McmcStrategy(PLAN, seed=0)
    strategy.moved(5, values, 1e-4)
    step = values["means"].data - before
    assert not step[COUNT // 2 :].abs().gt(1e-6).any()
    # Turned by a quarter about z, the long axis (variance 0.04) lies along y, the next along x.
    spread = step[: COUNT // 2].std(dim=0)
    assert float(spread[1] / spread[0]) == pytest.approx(100.0, rel=0.6)
    assert float(spread[0] / spread[2]) == pytest.approx(100.0, rel=0.6)
    again = parameters(opacity)
    again["quats"].data[:] = values["quats"].data
    strategy.moved(5, again, 1e-4)
    assert torch.equal(again["means"], values["means"])


def test_what_is_not_needed_is_made_to_vanish() -> None:
    values = parameters(torch.full((COUNT,), 0.5))
    McmcStrategy(PLAN, seed=0).penalty(values).backward()
    for name in ("opacities", "scales"):
        gradient = values[name].grad
        assert gradient is not None and bool((gradient > 0).all())
