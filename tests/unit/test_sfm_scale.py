"""Altimeter and depth give the model its metre, or say that they cannot."""

from __future__ import annotations

import numpy as np
import pytest

from worker_agent.stages.sfm_scale import by_altitude, by_depth, heights

rng = np.random.default_rng(0)
UNIT = 0.37  # metres
CENTRES = np.column_stack([np.linspace(0, 20, 40), np.zeros(40), np.full(40, 4.0)])
GROUND = np.column_stack([rng.uniform(-5, 25, 4000), rng.uniform(-5, 5, 4000), np.zeros(4000)])


def test_the_height_of_a_camera_is_that_above_the_ground_below_it() -> None:
    cliff = GROUND.copy()
    cliff[:, 2] = np.where(cliff[:, 0] > 12, 2.0, 0.0)
    found = heights(CENTRES, cliff)
    assert found[:20] == pytest.approx(4.0)
    assert found[28:] == pytest.approx(2.0)
    overhang = GROUND + np.array([0, 0, 9])
    assert heights(CENTRES, np.concatenate([GROUND, overhang])) == pytest.approx(4.0)
    assert np.isnan(heights(CENTRES + np.array([0, 100, 0]), cliff)).all()  # nothing below


def test_altitudes_give_the_metre_through_noise_and_fish() -> None:
    above = heights(CENTRES, GROUND + rng.normal(0, 0.05, GROUND.shape))
    measured = UNIT * 4.0 * (1 + rng.normal(0, 0.03, 40))
    measured[::7] = 0.4 * UNIT  # a fish below the altimeter
    measured[3] = np.nan
    found = by_altitude(above, measured)
    assert found is not None
    assert abs(found.metres / UNIT - 1) < 3 * found.uncertainty
    assert found.uncertainty < 0.03


def test_altitudes_that_disagree_or_are_few_say_nothing() -> None:
    above = np.full(40, 4.0)
    assert by_altitude(above, rng.uniform(0.5, 4.0, 40)) is None
    measured = np.full(40, np.nan)
    measured[:4] = 1.5
    assert by_altitude(above, measured) is None
    assert by_altitude(np.full(40, np.nan), np.full(40, 1.5)) is None


def test_a_vehicle_that_sinks_tells_the_metre_by_its_depth() -> None:
    up = np.linspace(0, -10, 40)
    depths = 12.0 - UNIT * up + rng.normal(0, 0.02, 40)
    depths[5] = 90.0  # a wrong reading
    depths[9] = np.nan
    found = by_depth(up, depths)
    assert found is not None
    assert abs(found.metres / UNIT - 1) < 4 * found.uncertainty < 0.1


def test_a_constant_depth_says_nothing() -> None:
    level = rng.normal(0, 0.02, 40)
    assert by_depth(level, 12.0 + rng.normal(0, 0.02, 40)) is None
    assert by_depth(np.zeros(40), np.full(40, 12.0)) is None
    assert by_depth(np.linspace(0, 10, 40), np.full(40, 12.0)) is None
    # Upside down: the gravity is not what it seems.
    assert by_depth(np.linspace(0, 10, 40), np.linspace(5, 9, 40)) is None
