"""A model is put where its cameras say it is, and nowhere when they say too little."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from worker_agent.stages.sfm_georeference import Frame, georeference, to_enu

rng = np.random.default_rng(0)
LAWN = np.column_stack(  # a survey of two lines, 20 m by 4 m, 2 m above the ground
    [np.r_[np.linspace(0, 20, 20), np.linspace(20, 0, 20)], np.r_[np.zeros(20), np.full(20, 4.0)],
     2 + 0.1 * np.sin(np.arange(40))]
)  # fmt: skip
LINE = LAWN[:20] * [1.0, 0.0, 1.0]


def model(
    world: np.ndarray, *, gravity: bool = True, noise: float = 0.0, seed: int = 1, gps: bool = True
) -> list[Frame]:
    """The cameras in a frame of their own, turned, scaled and moved at random."""
    draw = np.random.default_rng(seed)
    turn = Rotation.random(random_state=seed).as_matrix()
    scale, shift = 10 ** draw.uniform(-2, 2), draw.uniform(-50, 50, 3)
    measured = world + draw.normal(0, noise, world.shape) if noise else world
    return [
        Frame(
            centre=(turn.T @ (point - shift)) / scale,
            down=turn.T @ np.array([0.0, 0.0, -1.0]) if gravity else None,
            position=there if gps else None,
        )
        for point, there in zip(world, measured, strict=True)
    ]


def moved(frames: list[Frame]) -> np.ndarray:
    world = georeference(frames)
    assert world is not None
    return world.apply(np.array([frame.centre for frame in frames]))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_exact_positions_give_the_exact_place(seed: int, gravity: bool) -> None:
    frames = model(LAWN, gravity=gravity, seed=seed)
    assert moved(frames) == pytest.approx(LAWN, abs=1e-5)
    world = georeference(frames)
    assert world is not None and world.metric and world.upright


def test_a_line_needs_gravity() -> None:
    assert moved(model(LINE)) == pytest.approx(LINE, abs=1e-5)
    assert georeference(model(LINE, gravity=False)) is None


def test_gravity_alone_makes_it_upright_and_leaves_the_scale() -> None:
    frames = model(LAWN, gps=False)
    world = georeference(frames)
    assert world is not None
    assert (world.upright, world.metric, world.scale) == (True, False, 1.0)
    downs = [world.rotation @ frame.down for frame in frames]
    assert np.array(downs) == pytest.approx(np.tile([0.0, 0.0, -1.0], (40, 1)), abs=1e-9)


def test_wild_positions_do_not_count() -> None:
    frames = model(LAWN, noise=0.02)
    for index in (3, 11, 27):
        frames[index] = dataclasses.replace(
            frames[index], position=np.add(frames[index].position, [300.0, -90.0, 40.0])
        )
    world = georeference(frames)
    assert world is not None
    assert world.positions <= 37
    assert world.drift_m == pytest.approx(0.03, abs=0.03)
    assert np.abs(moved(frames) - LAWN).max() < 0.1


def test_positions_that_are_as_wrong_as_they_are_far_apart_say_nothing() -> None:
    world = georeference(model(0.05 * LAWN, noise=3.0))
    assert world is not None and not world.metric and world.upright
    assert georeference(model(LAWN[:4], gravity=False)) is None


def test_degrees_become_metres() -> None:
    enu, origin = to_enu([(54.0, 10.0, 5.0), (54.0, 10.0, 5.0), (54.001, 10.001, 7.0)])
    assert origin == (54.0, 10.0, 5.0)
    # A minute of latitude is a nautical mile, 1855 m at 54 degrees; parallels shrink by cosine.
    assert enu[2] == pytest.approx([65.6, 111.3, 2.0], abs=0.1)
