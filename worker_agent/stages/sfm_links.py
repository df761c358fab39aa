"""How firmly a model's track holds together: what carries its scale from frame to frame. Pure.

Two views of a point say nothing of how far apart they are, three do. Where hardly a point is seen
from three places, what comes before and what after are two models that turn and grow about a hinge:
both look right, and no reprojection error tells. A rendered track with each picture twice, 0.7 m
apart, was registered whole, to 0.03 px, with its second half at a quarter of the size; 10 points
held the two together. Good models of real footage have 150 and more.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

__all__ = ["links"]

PLACES = 3  # a point is seen from
SAME_PLACE = 0.01  # of the median depth: frames nearer to each other are of one place


def links(model: Any) -> list[int]:
    """For each two posed images of a pycolmap `model` that follow each other by name: how many of
    its points carry the scale over the place of the first, being seen from three places, one of
    them before and one after it. Where the two are of one place, or nothing was before: how many
    points both sides see."""
    posed = sorted((i for i in model.images.values() if i.has_pose), key=lambda image: image.name)
    rank = {image.image_id: index for index, image in enumerate(posed)}
    tracks = [
        sorted({rank[e.image_id] for e in point.track.elements if e.image_id in rank})
        for point in model.points3D.values()
    ]
    places = _places(posed, model, tracks)
    shared = np.zeros(len(posed) + 1, int)
    carried = np.zeros(places[-1] + 3 if places else 1, int)
    for track in filter(None, tracks):
        shared[track[0]] += 1
        shared[track[-1]] -= 1
        seen = {places[index] for index in track}
        if len(seen) >= PLACES:
            carried[min(seen) + 1] += 1
            carried[max(seen)] -= 1
    shared, carried = shared.cumsum(), carried.cumsum()
    return [
        int(carried[place] if 0 < place < after else shared[index])
        for index, (place, after) in enumerate(itertools.pairwise(places))
    ]


def _places(posed: list[Any], model: Any, tracks: list[list[int]]) -> list[int]:
    """Number of the place that each image was made from, counted along the track."""
    centres = np.array([image.projection_center() for image in posed])
    depths = [
        float(np.linalg.norm(centres[track[0]] - point.xyz))
        for track, point in zip(tracks, model.points3D.values(), strict=True)
        if track
    ]
    near = SAME_PLACE * float(np.median(depths)) if depths else 0.0
    places: list[int] = []
    first = 0
    for index in range(len(posed)):
        if index and not np.linalg.norm(centres[index] - centres[first]) <= near:
            first = index
        places.append((places[-1] + (first == index)) if places else 0)
    return places
