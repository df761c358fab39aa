"""What carries a model's scale from frame to frame."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from worker_agent.stages.sfm_links import links


def model(centres: list[float], tracks: list[list[int]]) -> Any:
    """Cameras along x, 2 above points that these frames see."""
    at = [np.array([x, 0.0, 0.0]) for x in centres]
    images = {
        i: SimpleNamespace(
            image_id=i, name=f"f{i:03d}", has_pose=True, projection_center=lambda c=c: c
        )
        for i, c in enumerate(at)
    }
    points = {
        n: SimpleNamespace(
            xyz=np.array([0.0, 0.0, 2.0]),
            track=SimpleNamespace(elements=[SimpleNamespace(image_id=i) for i in track]),
        )
        for n, track in enumerate(tracks)
    }
    return SimpleNamespace(images=images, points3D=points)


def test_three_places_carry_and_two_do_not() -> None:
    along = [0.0, 0.5, 1.0, 1.5]
    assert links(model(along, [[0, 1, 2]] * 5 + [[2, 3]] * 7)) == [5, 5, 0]
    assert links(model(along, [[0, 3]] * 4 + [[0, 2, 3]])) == [5, 1, 1]


def test_two_pictures_of_one_place_are_one_view() -> None:
    twice = [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    tracks = [[0, 1, 2, 3]] * 40 + [[2, 3, 4, 5]] * 40 + [[1, 2, 3, 4]] * 6
    assert links(model(twice, tracks)) == [40, 46, 86, 6, 40]


def test_a_model_without_points_is_held_by_nothing() -> None:
    assert links(model([0.0, 1.0], [])) == [0]
    assert links(model([0.0], [])) == []
