"""Which pairs are tried."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from stitch.candidates import ALL_PAIRS_UP_TO, candidates
from stitch.sidecar import Sidecar
from stitch.sim3 import Sim3
from tests.stitch_world import Seabed

COUNT = 40


def without_frames(sidecar: Sidecar) -> Sidecar:
    return dataclasses.replace(sidecar, keyframe_hashes=np.zeros(len(sidecar.keyframe_names)))


def gps(sidecar: Sidecar, metres_north: float) -> Sidecar:
    fixes = np.full((len(sidecar.keyframe_names), 3), np.nan)
    fixes[::2] = [45.0 + metres_north / 111_320.0, 9.0, 0.0]
    return dataclasses.replace(sidecar, gps=fixes)


@pytest.fixture(scope="module")
def strangers() -> list[Sidecar]:
    """Members that saw nothing in common and do not know where they were."""
    return [
        without_frames(Seabed(100 + k, count=300).segment(0, 12, Sim3.identity()))
        for k in range(COUNT)
    ]


def following(count: int) -> set[tuple[int, int]]:
    return {(i, j) for i, j in itertools.combinations(range(count), 2) if j - i <= 2}


def test_few_members_are_all_tried(strangers: list[Sidecar]) -> None:
    some = strangers[:ALL_PAIRS_UP_TO]
    assert candidates(some) == tuple(itertools.combinations(range(len(some)), 2))
    assert candidates(some[:1]) == ()


def test_strangers_are_tried_with_their_neighbours_only(strangers: list[Sidecar]) -> None:
    found = set(candidates(strangers))
    assert found >= following(COUNT)
    assert len(found - following(COUNT)) < 0.1 * COUNT * (COUNT - 1) / 2


def test_what_looks_alike_is_tried(strangers: list[Sidecar]) -> None:
    """Members 5 and 30 saw a third of their ground both, from other sides."""
    world = Seabed(7, count=600)
    members = list(strangers)
    members[5] = without_frames(world.segment(0, 7, Sim3.identity()))
    members[30] = without_frames(world.segment(4.5, 12, Sim3.identity()))
    assert (5, 30) in candidates(members)


def test_common_frames_and_near_fixes_are_tried(strangers: list[Sidecar]) -> None:
    members = list(strangers)
    hashes = members[3].keyframe_hashes.copy()
    hashes[4] = 77
    members[3] = dataclasses.replace(members[3], keyframe_hashes=hashes)
    members[21] = dataclasses.replace(members[21], keyframe_hashes=hashes)
    members[8] = gps(members[8], 0.0)
    members[17] = gps(members[17], 10.0)
    members[33] = gps(members[33], 500.0)
    found = set(candidates(members))
    assert {(3, 21), (8, 17)} <= found
    assert not {(8, 33), (17, 33)} & found
