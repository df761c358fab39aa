"""Refinement by a threshold: which gaussians grow and how, what a reset leaves, gsplat's own."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from gsplat import DefaultStrategy as Theirs
from gsplat.strategy.ops import reset_opa
from torch import Tensor

from worker_agent.training.adam import Adam
from worker_agent.training.default import GROW_ABOVE, DefaultStrategy, scene_extent
from worker_agent.training.gaussians import Parameters
from worker_agent.training.schedule import Schedule

COUNT, EXTENT = 12, 2.0
SMALL, LARGE, OVERSIZED = 0.019, 0.021, 0.21  # a hundredth and a tenth of the extent between them
PLAN = Schedule(steps=4000, cap=40, sh_degree=1, initial=COUNT, gradual=False)
EARLY = PLAN.reset_every - PLAN.refine_every
RESET = PLAN.reset_every
LATE = PLAN.reset_every + PLAN.refine_every


def parameters(scales: Tensor | float = SMALL, opacity: Tensor | float = 0.7) -> Parameters:
    """Each with its number as its colour."""
    count = COUNT if isinstance(scales, float) else len(scales)
    generator = torch.Generator().manual_seed(0)
    sizes = torch.as_tensor(scales).expand(count)
    values = {
        "means": torch.randn(count, 3, generator=generator),
        "scales": torch.log(torch.stack([sizes, 0.5 * sizes, 0.1 * sizes], dim=-1)),
        "quats": torch.randn(count, 4, generator=generator),
        "opacities": torch.logit(torch.as_tensor(opacity).expand(count)),
        "sh0": torch.arange(count, dtype=torch.float32)[:, None, None].repeat(1, 1, 3),
        "shN": torch.zeros(count, 3, 3),
    }
    return {name: torch.nn.Parameter(value.contiguous()) for name, value in values.items()}


def meta(gradients: Tensor, seen: Tensor | None = None) -> dict[str, Any]:
    """Of a view of 2 x 2 pixels, where pixels are half images; gradients (N,)."""
    means2d = torch.zeros(1, len(gradients), 2)
    means2d.absgrad = torch.stack([gradients, torch.zeros(len(gradients))], -1)[None]  # type: ignore[attr-defined]
    radii = torch.ones(1, len(gradients), 2, dtype=torch.int32)
    if seen is not None:
        radii *= seen[None, :, None]
    return {
        "means2d": means2d,
        "radii": radii,
        "width": 2,
        "height": 2,
        "n_cameras": 1,
        "gaussian_ids": None,
    }


def refined(
    values: Parameters,
    gradients: Tensor,
    *,
    step: int = EARLY,
    plan: Schedule = PLAN,
    warnings: list[str] | None = None,
) -> Adam:
    adam = Adam(values)
    warn = print if warnings is None else warnings.append
    strategy = DefaultStrategy(plan, len(gradients), extent=EXTENT, seed=0, warn=warn)
    strategy.observe(meta(gradients))
    done = strategy.refine(step, adam)
    assert done.total == len(adam.parameters["means"])
    return adam


def of(adam: Adam, number: int) -> Tensor:
    """Rows of a gaussian and its children."""
    return (adam.parameters["sh0"].data[:, 0, 0] == number).nonzero()[:, 0]


def test_those_above_the_threshold_grow_and_no_others() -> None:
    gradients = torch.full((COUNT,), 0.99 * GROW_ABOVE)
    gradients[[2, 5]] = 1.01 * GROW_ABOVE
    adam = refined(parameters(), gradients)
    assert [len(of(adam, number)) for number in range(COUNT)] == [
        2 if number in (2, 5) else 1 for number in range(COUNT)
    ]


def test_the_gradient_is_the_mean_of_the_views_that_saw_a_gaussian() -> None:
    adam = Adam(parameters())
    strategy = DefaultStrategy(PLAN, COUNT, extent=EXTENT, seed=0, warn=print)
    seen = torch.arange(COUNT) < 6
    strategy.observe(meta(torch.full((COUNT,), 1.5 * GROW_ABOVE) * seen, seen))
    strategy.observe(meta(torch.full((COUNT,), 0.1 * GROW_ABOVE)))
    strategy.observe(meta(torch.full((COUNT,), 1.5 * GROW_ABOVE) * seen, seen))
    strategy.refine(EARLY, adam)
    assert [len(of(adam, number)) for number in range(COUNT)] == [2] * 6 + [1] * 6


def test_small_ones_are_copied_and_large_ones_split() -> None:
    scales = torch.full((COUNT,), SMALL)
    scales[3] = LARGE
    gradients = torch.zeros(COUNT)
    gradients[[2, 3]] = 1.0
    adam = refined(parameters(scales), gradients)
    sizes = adam.parameters["scales"].data.exp().amax(dim=-1)
    assert sizes[of(adam, 2)].tolist() == pytest.approx([SMALL, SMALL])
    assert sizes[of(adam, 3)].tolist() == pytest.approx([LARGE / 1.6, LARGE / 1.6])


def test_transparent_and_broken_ones_go_and_oversized_ones_after_the_first_reset() -> None:
    scales = torch.full((COUNT,), SMALL)
    scales[[4, 5]] = OVERSIZED
    scales[6] = 1.7 * OVERSIZED
    gradients = torch.zeros(COUNT)
    gradients[[5, 6]] = 1.0  # divided, 5 is small enough; 6 is not
    for step, gone in ((EARLY, {0, 1}), (LATE, {0, 1, 4, 6})):
        values = parameters(scales)
        values["opacities"].data[0] = math.log(0.0049 / 0.9951)
        values["means"].data[1, 2] = math.nan
        adam = refined(values, gradients, step=step)
        assert {n for n in range(COUNT) if not len(of(adam, n))} == gone
        assert len(of(adam, 5)) == 2


@pytest.mark.parametrize("cap", [COUNT - 3, COUNT, COUNT + 1, COUNT + 4, 40])
def test_the_largest_gradients_take_what_the_cap_leaves(cap: int) -> None:
    plan = dataclasses.replace(PLAN, cap=cap)
    scales = torch.full((COUNT,), SMALL)
    scales[[9, 10, 11]] = OVERSIZED  # each divided takes two places, as it goes otherwise
    gradients = torch.arange(1, COUNT + 1, dtype=torch.float32)
    adam = refined(parameters(scales), gradients, step=LATE, plan=plan)
    numbers = [len(of(adam, number)) for number in range(COUNT)]
    assert sum(numbers) <= cap
    assert numbers[9:] == {9: [0, 0, 0], 12: [0, 0, 2], 13: [0, 2, 2]}.get(cap, [2, 2, 2])
    assert numbers[:9] == {16: [1] * 8 + [2], 40: [2] * 9}.get(cap, [1] * 9)


def test_a_reset_leaves_a_hundredth_of_opacity_and_no_moments() -> None:
    opacity = torch.linspace(0.006, 0.99, COUNT)
    values, reference = parameters(opacity=opacity), parameters(opacity=opacity)
    assert PLAN.resets_at(RESET) and not PLAN.resets_at(LATE)
    for step in (RESET, LATE):
        adam = Adam({name: torch.nn.Parameter(v.data.clone()) for name, v in values.items()})
        for value in adam.parameters.values():
            value.grad = torch.ones_like(value)
        adam.step(dict.fromkeys(adam.parameters, 0.0))
        strategy = DefaultStrategy(PLAN, COUNT, extent=EXTENT, seed=0, warn=print)
        strategy.refine(step, adam)
        after = torch.sigmoid(adam.parameters["opacities"].data)
        expected = opacity.clamp_max(0.01) if step == RESET else opacity
        assert torch.allclose(after, expected, rtol=1e-5)
        for moments in (adam.state()[key] for key in ("first", "second")):
            assert isinstance(moments, dict)
            assert bool((moments["opacities"] != 0).any()) == (step == LATE)
            assert bool((moments["means"] != 0).all())
    optimizers = {"opacities": torch.optim.Adam([reference["opacities"]])}
    reset_opa(reference, optimizers, {}, value=0.01)  # type: ignore[arg-type]
    ours = refined(values, torch.zeros(COUNT), step=RESET).parameters["opacities"].data
    assert torch.allclose(ours, reference["opacities"].data, rtol=1e-6)


def test_opacities_are_reset_as_often_as_in_gsplat_and_come_back_before_the_end() -> None:
    for steps, resets in ((400, 0), (1000, 2), (7000, 5), (30_000, 5)):
        plan = dataclasses.replace(PLAN, steps=steps)
        at = [step for step in range(steps + 1) if plan.resets_at(step)]
        assert len(at) == resets and all(plan.refines_at(step) for step in at)
        assert all(step < 0.7 * steps and step + plan.reset_every <= steps for step in at)


@pytest.mark.parametrize(
    ("above", "cap", "alarms"),
    [(0, 400, 1), (1, 400, 0), (0, COUNT, 0)],
    ids=["none above", "some above", "no room"],
)
def test_an_alarm_after_three_refinements_with_none_above(
    above: int, cap: int, alarms: int
) -> None:
    warnings: list[str] = []
    adam = Adam(parameters())
    plan = dataclasses.replace(PLAN, cap=cap)
    strategy = DefaultStrategy(plan, COUNT, extent=EXTENT, seed=0, warn=warnings.append)
    for number in range(5):
        gradients = torch.full((len(adam.parameters["means"]),), 0.5 * GROW_ABOVE)
        gradients[:above] = 1.0
        strategy.observe(meta(gradients))
        strategy.refine(EARLY, adam)
        assert len(warnings) == (alarms if number >= 2 else 0)
    assert not warnings or "above 0.0008, now 0 of 12 (median 4.00e-04" in warnings[0]


def test_a_restored_strategy_goes_on_as_the_one_that_was_saved() -> None:
    gradients = torch.linspace(0.0, 4 * GROW_ABOVE, COUNT)
    outcomes, saved = [], {}
    for number in range(2):
        strategy = DefaultStrategy(PLAN, COUNT, extent=EXTENT, seed=3, warn=print)
        if number:
            strategy.restore(saved)
        else:
            strategy.observe(meta(gradients))
            saved = strategy.state()
        adam = Adam(parameters(LARGE))
        strategy.refine(EARLY, adam)
        outcomes.append(adam.parameters)
    assert len(outcomes[0]["means"]) > COUNT
    assert all(torch.equal(value, outcomes[1][name]) for name, value in outcomes[0].items())


def test_the_extent_is_that_of_the_cameras() -> None:
    poses = torch.eye(4).repeat(3, 1, 1)
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    for pose, centre in zip(
        poses, ([5.0, 1.0, 0.0], [5.0, 4.0, 0.0], [5.0, 7.0, 0.0]), strict=True
    ):
        pose[:3, :3], pose[:3, 3] = quarter, -quarter @ torch.tensor(centre)
    assert scene_extent(poses) == pytest.approx(3.3)


@pytest.mark.parametrize("step", [EARLY, LATE])
def test_one_refinement_is_gsplats(step: int) -> None:
    """Which ones are copied, split, removed and how large they are then. A copy's place and opacity
    are ours (GradientStrategy), those of the halves are drawn."""
    count, views = 600, 4
    generator = torch.Generator().manual_seed(5)
    scales = 0.002 * 200.0 ** torch.rand(count, generator=generator)
    opacity = 0.001 * 990.0 ** torch.rand(count, generator=generator)
    gradients = GROW_ABOVE * 16.0 ** (torch.rand(views, count, generator=generator) - 0.5)
    seen = torch.rand(views, count, generator=generator) > 0.4
    metas = [meta(g * s, s) for g, s in zip(gradients, seen, strict=True)]

    plan = dataclasses.replace(PLAN, cap=10_000)
    adam = Adam(parameters(scales, opacity))
    ours = DefaultStrategy(plan, count, extent=EXTENT, seed=0, warn=print)
    for one in metas:
        ours.observe(one)
    done = ours.refine(step, adam)

    splats = parameters(scales, opacity)
    optimizers = {name: torch.optim.Adam([value]) for name, value in splats.items()}
    theirs = Theirs(
        grow_grad2d=GROW_ABOVE,
        absgrad=True,
        reset_every=plan.reset_every,
        refine_start_iter=0,
        refine_every=step,
    )
    state = theirs.initialize_state(scene_scale=EXTENT)
    for number, one in enumerate(metas):
        theirs.step_post_backward(splats, optimizers, state, step - views + 1 + number, one)

    assert done.added > 100
    assert done.pruned > 50
    for name in ("sh0", "scales"):
        mine, other = (_sorted(values, name) for values in (adam.parameters, splats))
        assert mine.shape == other.shape and torch.allclose(mine, other, rtol=1e-6), name
    single = torch.bincount(_sorted(splats, "sh0")[:, 0].long(), minlength=count) == 1
    for name in ("means", "opacities", "quats"):
        mine, other = (
            _sorted(values, name)[single[_sorted(values, "sh0")[:, 0].long()]]
            for values in (adam.parameters, splats)
        )
        assert len(mine) > 100 and torch.equal(mine, other), name


def _sorted(values: Parameters, name: str) -> Tensor:
    """(N, D) in the order of the gaussians that they come of."""
    order = torch.argsort(values["sh0"].data[:, 0, 0], stable=True)
    return values[name].data[order].reshape(len(order), -1)
