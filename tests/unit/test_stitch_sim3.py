"""Sim(3): group laws, and gaussians that look the same after they moved."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y

from stitch.gaussians import Gaussians
from stitch.sim3 import Sim3, sh_basis, transform_gaussians, umeyama
from tests.stitch_world import random_gaussians, random_sim3

finite = st.floats(-1, 1, allow_nan=False)


@st.composite
def sim3s(draw: st.DrawFn) -> Sim3:
    quaternion = np.array([draw(finite) for _ in range(4)])
    if np.linalg.norm(quaternion) < 1e-3:
        quaternion = np.array([1.0, 0, 0, 0])
    return Sim3(
        float(np.exp(2.0 * draw(finite))),
        Rotation.from_quat(quaternion).as_matrix(),
        10.0 * np.array([draw(finite) for _ in range(3)]),
    )


POINTS = np.random.default_rng(0).normal(size=(20, 3))


def close(a: Sim3, b: Sim3) -> bool:
    return bool(np.allclose(a.apply(POINTS), b.apply(POINTS), atol=1e-8))


@given(a=sim3s(), b=sim3s(), c=sim3s())
@settings(max_examples=60, deadline=None)
def test_group_laws(a: Sim3, b: Sim3, c: Sim3) -> None:
    assert np.allclose((a @ b).apply(POINTS), a.apply(b.apply(POINTS)), atol=1e-8)
    assert close((a @ b) @ c, a @ (b @ c))
    assert close(a @ Sim3.identity(), a)
    assert close(a @ a.inverse(), Sim3.identity())
    assert close((a @ b).inverse(), b.inverse() @ a.inverse())


@given(truth=sim3s(), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_umeyama_recovers_the_transform(truth: Sim3, seed: int) -> None:
    source = np.random.default_rng(seed).normal(size=(12, 3)) * [1, 1, 0.01]
    found = umeyama(source, truth.apply(source))
    assert close(found, truth)
    assert found.angle_to(truth) < 1e-4


def test_umeyama_counts_a_row_as_often_as_it_weighs() -> None:
    rng = np.random.default_rng(4)
    source, target = rng.normal(size=(2, 20, 3))
    weights = rng.integers(1, 4, 20)
    weighted = umeyama(source, target, weights.astype(float))
    repeated = umeyama(np.repeat(source, weights, axis=0), np.repeat(target, weights, axis=0))
    assert weighted.scale == pytest.approx(repeated.scale)
    assert np.allclose(weighted.rotation, repeated.rotation)
    assert np.allclose(weighted.translation, repeated.translation)


def test_umeyama_never_mirrors() -> None:
    source = np.random.default_rng(1).normal(size=(30, 3))
    assert np.linalg.det(umeyama(source, source * [1, 1, -1]).rotation) == pytest.approx(1.0)


def test_points_that_do_not_fix_a_transform_are_refused() -> None:
    line = np.outer(np.arange(5.0), [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="one line"):
        umeyama(line, line)
    with pytest.raises(ValueError, match="2 points"):
        umeyama(line[:2], line[:2])


@pytest.mark.parametrize(
    ("scale", "rotation"),
    [(0.0, np.eye(3)), (-1.0, np.eye(3)), (np.nan, np.eye(3)), (1.0, np.diag([1, 1, -1.0]))],
)
def test_what_is_no_similarity_is_refused(scale: float, rotation: np.ndarray) -> None:
    with pytest.raises(ValueError, match="Sim3"):
        Sim3(scale, rotation, np.zeros(3))


def test_angle_between_rotations() -> None:
    turned = Sim3(2.0, Rotation.from_rotvec([0, 0.3, 0]).as_matrix(), np.ones(3))
    assert Sim3.identity().angle_to(turned) == pytest.approx(np.degrees(0.3))


def test_basis_is_the_real_spherical_harmonics() -> None:
    """Against scipy's complex ones: order m < 0 is sqrt(2) Im Y_l^|m|, m > 0 sqrt(2) Re Y_l^m."""
    directions = np.random.default_rng(2).normal(size=(50, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    theta, phi = np.arccos(directions[:, 2]), np.arctan2(directions[:, 1], directions[:, 0])
    expected = []
    for band in range(4):
        for order in range(-band, band + 1):
            value = sph_harm_y(band, abs(order), theta, phi)
            part = value.imag if order < 0 else value.real
            expected.append(part * (np.sqrt(2.0) if order else 1.0))
    assert np.allclose(sh_basis(directions, 3), np.stack(expected, axis=1), atol=1e-12)


def colour(gaussians: Gaussians, directions: np.ndarray) -> np.ndarray:
    """(N,M,3) colours of every gaussian seen along every direction."""
    basis = sh_basis(directions, gaussians.sh_degree)
    coefficients = np.concatenate([gaussians.sh0[:, None], gaussians.shN], axis=1)
    return np.einsum("mk,nkc->nmc", basis, coefficients.astype(np.float64))


@given(sim3=sim3s(), degree=st.integers(0, 3), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_colours_turn_with_the_gaussians(sim3: Sim3, degree: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gaussians = random_gaussians(rng, 6, degree)
    directions = rng.normal(size=(40, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    moved = transform_gaussians(gaussians, sim3)
    seen = colour(moved, directions @ sim3.rotation.T)
    assert np.abs(seen - colour(gaussians, directions)).max() <= 1e-5


def covariance(gaussians: Gaussians) -> np.ndarray:
    axes = Rotation.from_quat(np.roll(gaussians.quats, -1, axis=1)).as_matrix()
    variance = np.exp(2.0 * gaussians.scales.astype(np.float64))
    return np.einsum("nij,nj,nkj->nik", axes, variance, axes)


@given(sim3=sim3s(), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_shapes_turn_and_scale_with_the_gaussians(sim3: Sim3, seed: int) -> None:
    gaussians = random_gaussians(np.random.default_rng(seed), 6, 1)
    moved = transform_gaussians(gaussians, sim3)
    turned = sim3.scale * sim3.rotation
    expected = np.einsum("ij,njk,lk->nil", turned, covariance(gaussians), turned)
    assert np.allclose(covariance(moved), expected, rtol=1e-3, atol=1e-4 * expected.max())
    assert np.allclose(moved.means, sim3.apply(gaussians.means), atol=1e-4)
    assert np.array_equal(moved.opacities, gaussians.opacities)


def test_there_and_back_is_the_same() -> None:
    rng = np.random.default_rng(3)
    gaussians, sim3 = random_gaussians(rng, 100, 3), random_sim3(rng)
    back = transform_gaussians(transform_gaussians(gaussians, sim3), sim3.inverse())
    for name in ("means", "scales", "sh0", "shN"):
        assert np.allclose(getattr(back, name), getattr(gaussians, name), atol=2e-4), name
    sign = np.sign(np.sum(back.quats * gaussians.quats, axis=1, keepdims=True))
    assert np.allclose(back.quats * sign, gaussians.quats, atol=1e-5)
