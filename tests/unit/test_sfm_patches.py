"""Where a patch is found again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from worker_agent.stages.sfm_patches import align

WAVES = np.random.default_rng(4).normal(0.0, 0.35, (60, 2))
PHASES = np.random.default_rng(5).uniform(0.0, 6.0, 60)
F64 = npt.NDArray[np.float64]


def picture(warp: F64, shift: F64, gain: float = 1.0) -> npt.NDArray[np.uint8]:
    """(90, 90): what lies at u in the plain picture lies at warp @ u + shift here."""
    rows, columns = np.mgrid[0:90, 0:90].astype(np.float64)
    there = np.column_stack([columns.ravel(), rows.ravel()]) - shift
    plain = there @ np.linalg.inv(warp).T
    grey = np.cos(plain @ WAVES.T + PHASES).sum(axis=1)
    shades = np.clip(120 * gain + 9 * gain * grey, 0, 255).reshape(90, 90)
    return np.asarray(shades, np.uint8)


@pytest.mark.parametrize("gain", [1.0, 0.6])
@pytest.mark.parametrize("warp", [np.eye(2), np.array([[1.05, 0.08], [-0.06, 0.97]])])
def test_a_patch_is_found_to_hundredths_of_a_pixel(warp: F64, gain: float) -> None:
    shift = np.array([0.37, -0.61])
    points = np.array([[40.0, 45.0], [47.3, 41.8]])
    truth = points @ warp.T + shift
    guesses = truth + np.array([[0.9, -0.7], [-0.8, 0.6]])
    here, there = picture(np.eye(2), np.zeros(2)), picture(warp, shift, gain)
    warps = np.tile(np.eye(2), (2, 1, 1))
    found, alike = align(here, there, points, guesses, warps, np.zeros((2, 2)))
    assert np.abs(found - truth).max() < 0.02
    assert alike.min() > 0.99


def test_another_scene_is_not_alike() -> None:
    points = np.array([[45.0, 45.0]])
    rng = np.random.default_rng(8)
    other = rng.integers(0, 255, (90, 90)).astype(np.uint8)
    _, alike = align(
        picture(np.eye(2), np.zeros(2)), other, points, points, np.eye(2)[None], np.zeros((1, 2))
    )
    assert alike[0] < 0.7


@pytest.mark.parametrize("at", [(3.0, 45.0), (45.0, 88.0)])
def test_a_patch_that_leaves_the_picture_is_not_looked_for(at: tuple[float, float]) -> None:
    here = picture(np.eye(2), np.zeros(2))
    points = np.array([at])
    found, alike = align(here, here, points, points, np.eye(2)[None], np.zeros((1, 2)))
    assert alike[0] == -1
    assert found.tolist() == points.tolist()


def test_nothing_is_found_where_there_is_nothing_to_see() -> None:
    flat = np.full((90, 90), 117, np.uint8)
    points = np.array([[45.0, 45.0]])
    _, alike = align(flat, flat, points, points, np.eye(2)[None], np.zeros((1, 2)))
    assert alike[0] == -1
