"""The renderer: what it draws is where its poses say, and the same seed draws the same picture."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from worker_agent.demo.render import Camera, Water, render_frame
from worker_agent.demo.seabed import Seabed, make_seabed
from worker_agent.demo.survey import PRESETS, track_of

CAMERA = Camera(160, 90, 80.0)
WATER = Water((0.42, 0.12, 0.09), (0.03, 0.16, 0.22), (1.25, 1.15, 1.15))
CLEAR = Water((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
DOWN = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0]])


@pytest.fixture(scope="module")
def seabed() -> Seabed:
    return make_seabed(3, (4.0, 3.5), 0.01)


def test_same_seed_same_seabed_other_seed_another() -> None:
    first, again, other = (make_seabed(seed, (1.0, 1.0), 0.01) for seed in (5, 5, 6))
    assert np.array_equal(first.height, again.height)
    assert np.array_equal(first.colour, again.colour)
    assert not np.array_equal(first.colour, other.colour)


def test_seabed_covers_what_was_asked(seabed: Seabed) -> None:
    assert seabed.size_m[0] >= 4.0
    assert seabed.size_m[1] >= 3.5
    with pytest.raises(IndexError, match=r"outside of the seabed"):
        seabed.height_at(4.5, 1.0)


def test_a_point_of_the_ground_is_seen_where_the_pose_projects_it(seabed: Seabed) -> None:
    survey = dataclasses.replace(PRESETS["small"], seconds=1.0)
    rotation = track_of(survey, survey.segments[2], 1).rotations[4]
    centre = np.array([2.0, 1.7, 1.6])
    _, depth = render_frame(seabed, CAMERA, WATER, rotation, centre, 0)
    seen = 0
    for x in np.arange(1.4, 2.7, 0.13):
        for y in np.arange(1.3, 2.2, 0.11):
            point = np.array([x, y, seabed.height_at(x, y)])
            local = rotation.T @ (point - centre)
            u = CAMERA.focal_px * local[0] / local[2] + CAMERA.width / 2
            v = CAMERA.focal_px * local[1] / local[2] + CAMERA.height / 2
            if not (0 <= u < CAMERA.width and 0 <= v < CAMERA.height):
                continue
            # Pixel footprint 1 cm on rough ground; a point behind a stone is rightly not seen.
            seen += abs(depth[int(v), int(u)] - local[2]) < 0.03
            assert depth[int(v), int(u)] < local[2] + 0.10
    assert seen >= 60


def test_every_ray_ends_on_the_ground(seabed: Seabed) -> None:
    centre = np.array([2.0, 1.75, 1.5])
    _, depth = render_frame(seabed, CAMERA, WATER, DOWN, centre, 0)
    rows, columns = np.mgrid[0 : CAMERA.height : 7, 0 : CAMERA.width : 9]
    for row, column in zip(rows.ravel(), columns.ravel(), strict=True):
        ray = np.array(
            [
                (column + 0.5 - CAMERA.width / 2) / CAMERA.focal_px,
                (row + 0.5 - CAMERA.height / 2) / CAMERA.focal_px,
                1.0,
            ]
        )
        hit = centre + DOWN @ ray * depth[row, column]
        # The ray may end on a vertical flank: below the rim, never above the ground by a texel.
        around = [
            seabed.height_at(hit[0] + dx, hit[1] + dy)
            for dx in (-0.01, 0, 0.01)
            for dy in (-0.01, 0, 0.01)
        ]
        assert min(around) - 0.005 <= hit[2] <= max(around) + 0.005


def test_water_takes_the_red_and_adds_its_veil(seabed: Seabed) -> None:
    centre = np.array([2.0, 1.75, 1.5])
    clear, _ = render_frame(seabed, CAMERA, CLEAR, DOWN, centre, 0)
    water, _ = render_frame(
        seabed, CAMERA, dataclasses.replace(WATER, gain=(1, 1, 1)), DOWN, centre, 0
    )
    assert clear[..., 0].mean() > clear[..., 2].mean()  # sand is warm
    assert water[..., 0].mean() < water[..., 2].mean()
    assert water.std() < clear.std()


def test_noise_is_drawn_from_the_frame_seed(seabed: Seabed) -> None:
    centre = np.array([2.0, 1.75, 1.5])
    first, again, other = (
        render_frame(seabed, CAMERA, WATER, DOWN, centre, seed)[0].astype(int) for seed in (7, 7, 8)
    )
    assert np.array_equal(first, again)
    difference = first - other
    assert 1.0 < difference.std() < 12.0
    assert abs(difference.mean()) < 0.1


def test_ground_that_is_not_there_is_water_without_depth(seabed: Seabed) -> None:
    picture, depth = render_frame(seabed, CAMERA, WATER, DOWN, np.array([0.2, 0.2, 1.5]), 0)
    outside = depth == 0
    assert outside.any()
    assert not outside.all()
    assert picture[outside][:, 2].mean() > picture[outside][:, 0].mean()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_no_camera_of_a_survey_looks_past_the_ground(preset: str) -> None:
    survey = PRESETS[preset]
    for segment in survey.segments:
        track = track_of(survey, segment, 1)
        camera = segment.camera
        corners = np.array(
            [
                [x / camera.focal_px, y / camera.focal_px, 1.0]
                for x in (-camera.width / 2, camera.width / 2)
                for y in (-camera.height / 2, camera.height / 2)
            ]
        )
        rays = np.einsum("nij,kj->nki", track.rotations, corners)
        # Hollows lie a few centimetres below zero.
        drop = (track.centres[:, None, 2] + 0.2) / -rays[..., 2]
        ground = track.centres[:, None, :2] + drop[..., None] * rays[..., :2]
        assert ground.min() > 0, segment.name
        assert ground.max() < min(survey.size_m), segment.name


def test_tracks_are_proper_rotations_and_follow_their_line() -> None:
    survey = PRESETS["demo"]
    for segment in survey.segments:
        track = track_of(survey, segment, 1)
        assert len(track.times_s) == survey.frames
        products = track.rotations @ track.rotations.transpose(0, 2, 1)
        assert np.allclose(products, np.eye(3), atol=1e-12)
        assert np.allclose(np.linalg.det(track.rotations), 1.0)
        assert np.all(track.rotations[:, 2, 2] < -0.9)  # the optical axis points down
        travel = track.centres[-1, :2] - track.centres[0, :2]
        up_in_picture = -track.rotations[0, :2, 1]
        assert travel @ up_in_picture > 0.9 * np.linalg.norm(travel)  # it flies forward
