"""Initial gaussians, the split of views, and the way back to the model's frame."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker_agent.training.dataset import Normalisation, split_views
from worker_agent.training.gaussians import from_world, initial_gaussians, to_world


def start(count: int, points: int = 50) -> dict[str, torch.nn.Parameter]:
    generator = np.random.default_rng(0)
    xyz = generator.uniform(0, 1, (points, 3)).astype(np.float32)
    rgb = generator.uniform(0, 1, (points, 3)).astype(np.float32)
    seeded = torch.Generator().manual_seed(1)
    return initial_gaussians(xyz, rgb, count=count, sh_degree=2, generator=seeded)


@pytest.mark.parametrize("count", [20, 50, 200])
def test_there_are_as_many_as_asked_for_with_all_shapes(count: int) -> None:
    shapes = {name: tuple(value.shape) for name, value in start(count).items()}
    assert shapes == {
        "means": (count, 3),
        "scales": (count, 3),
        "quats": (count, 4),
        "opacities": (count,),
        "sh0": (count, 1, 3),
        "shN": (count, 8, 3),
    }


def test_filled_in_gaussians_lie_within_the_cloud_and_shrink_the_scales() -> None:
    few, many = start(50), start(400)
    assert torch.equal(many["means"][:50], few["means"])
    assert (many["means"].amax(0) <= few["means"].amax(0)).all()
    assert (many["means"].amin(0) >= few["means"].amin(0)).all()
    assert many["scales"].detach().mean() < few["scales"].detach().mean()


def test_the_same_seed_gives_the_same_gaussians() -> None:
    one, two = start(300), start(300)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_training_them_leaves_the_points_as_they_were() -> None:
    xyz = np.random.default_rng(0).uniform(0, 1, (9, 3)).astype(np.float32)
    before = xyz.copy()
    made = initial_gaussians(xyz, xyz, count=9, sh_degree=0, generator=torch.Generator())
    made["means"].data += 1.0
    assert (xyz == before).all()


def test_coincident_points_still_get_a_size() -> None:
    xyz = np.zeros((10, 3), np.float32)
    made = initial_gaussians(
        xyz, xyz, count=10, sh_degree=0, generator=torch.Generator().manual_seed(0)
    )
    assert torch.isfinite(made["scales"]).all()


@given(
    st.floats(1e-3, 1e3),
    st.tuples(*(st.floats(-1e3, 1e3) for _ in range(3))),
)
def test_normalisation_is_undone(scale: float, centre: tuple[float, float, float]) -> None:
    there = Normalisation(scale, centre)
    points = np.random.default_rng(3).uniform(-5, 5, (20, 3))
    assert np.allclose(there.undo(there.apply(points)), points, atol=1e-8)


def test_export_scales_positions_and_sizes_alike() -> None:
    made = start(30)
    normalisation = Normalisation(0.25, (10.0, -2.0, 3.0))
    world = to_world(made, normalisation)
    means, scales = (made[name].detach().numpy() for name in ("means", "scales"))
    assert np.allclose(world.means, means * 4.0 + [10.0, -2.0, 3.0], atol=1e-5)
    assert np.allclose(np.exp(world.scales), np.exp(scales) * 4.0, rtol=1e-5)
    assert np.allclose(np.linalg.norm(world.quats, axis=1), 1.0, atol=1e-6)
    assert world.sh_degree == 2
    back = from_world(world, normalisation)
    assert back.keys() == made.keys()
    for name in ("means", "scales", "opacities", "sh0", "shN"):
        assert torch.allclose(back[name], made[name], atol=1e-5), name


@given(st.integers(3, 400), st.integers(2, 50))
def test_views_are_split_without_overlap_and_some_are_held_out(count: int, every: int) -> None:
    train, test = split_views(count, every)
    assert sorted(train + test) == list(range(count))
    assert train and test
    assert len(test) <= count / every + 1
