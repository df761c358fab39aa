"""How large a scene is: by which source, how surely, and what contradicts it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from stitch.merge import merge_sidecars
from stitch.posegraph import Solution
from stitch.priors import Placed, World
from stitch.scale import (
    Measure,
    Ruler,
    believed,
    conflicts,
    of_members,
    of_ruler,
    quality_of,
    scale_entry,
)
from stitch.sim3 import Sim3
from stitch.territory import Member
from tests.stitch_world import Seabed, random_sim3
from worker_agent.stages.stitch_world import measured, sized


def members(seed: int, told: list[dict[str, float | str]]) -> list[Member]:
    """Each in metres of its own belief: its frame's unit is `told["metres_per_unit"]` or 1."""
    world = Seabed(seed, count=300)
    made = []
    for k, quality in enumerate(told):
        pose = random_sim3(world.rng)
        sidecar = world.segment(0, 6, pose)
        sidecar = dataclasses.replace(sidecar, quality={**sidecar.quality, **quality})
        made.append(Member(f"S{k}", pose, sidecar))
    return made


def test_altimeters_of_members_are_weighed_by_how_sure_they_are() -> None:
    rng = np.random.default_rng(1)
    made = members(1, [{} for _ in range(5)])
    for k, sigma in enumerate((0.01, 0.01, 0.1, 0.02)):
        off = float(np.exp(sigma * rng.normal()))
        quality = {"scale_from": "altitude", "scale_uncertainty": sigma,
                   "metres_per_unit": 2.5 * made[k].pose.scale * off}  # fmt: skip
        sidecar = made[k].sidecar
        made[k] = dataclasses.replace(
            made[k], sidecar=dataclasses.replace(sidecar, quality={**sidecar.quality, **quality})
        )
    (found,) = of_members(made)
    assert (found.source, found.count) == ("altimeter", 4)
    assert 0.005 < found.uncertainty < 0.012
    assert abs(np.log(found.metres / 2.5)) < 3 * found.uncertainty
    assert of_members(made, ["altimeter"]) == []


def test_members_that_differ_make_the_mean_uncertain() -> None:
    told = {"scale_from": "depth", "scale_uncertainty": 0.002}
    made = members(2, [told, told])
    for k, metres in enumerate((1.0, 1.2)):
        quality = {**made[k].sidecar.quality, "metres_per_unit": metres * made[k].pose.scale}
        made[k] = dataclasses.replace(
            made[k], sidecar=dataclasses.replace(made[k].sidecar, quality=quality)
        )
    (found,) = of_members(made)
    assert found.metres == pytest.approx(np.sqrt(1.2))
    assert found.uncertainty == pytest.approx(np.log(1.2) / 2, rel=0.02)


def test_a_ruler_is_as_sure_as_it_is_long() -> None:
    pose = Sim3(2.0, np.eye(3), np.ones(3))
    short = of_ruler(Ruler(0, ((0, 0, 0), (0.3, 0, 0)), 0.6, 0.0, ""), pose, depth=2.0)
    long = of_ruler(Ruler(0, ((0, 0, 0), (3.0, 0, 0)), 6.0, 0.0, ""), pose, depth=2.0)
    assert short.metres == long.metres == pytest.approx(1.0)
    assert short.uncertainty == pytest.approx(10 * long.uncertainty)
    rough = of_ruler(Ruler(0, ((0, 0, 0), (3.0, 0, 0)), 6.0, 0.6, ""), pose, depth=2.0)
    assert rough.uncertainty == pytest.approx(0.1, rel=0.01)
    with pytest.raises(ValueError, match="two places"):
        of_ruler(Ruler(0, ((1, 1, 1), (1, 1, 1)), 1.0, 0.0, ""), pose, depth=2.0)


def test_the_surest_source_is_believed_and_what_contradicts_it_is_told() -> None:
    gps = Measure("positions", 1.00, 0.02, 60)
    sonar = Measure("altimeter", 1.03, 0.01, 2)
    ruler = Measure("ruler", 1.20, 0.004, 1)
    assert believed([gps, sonar]) == sonar and conflicts([gps, sonar]) == []
    lines = conflicts([gps, sonar, ruler])
    assert [line.split(" (")[0] for line in lines] == [
        "the scale by positions",
        "the scale by altimeter",
    ]
    assert "differ by 20.0%" in lines[0]
    entry = scale_entry([gps, sonar, ruler])
    assert (entry["metric"], entry["from"], entry["metres_per_unit"]) == (True, "ruler", 1.2)
    nothing = scale_entry([])
    assert (nothing["metric"], nothing["from"], nothing["metres_per_unit"]) == (
        False,
        "arbitrary",
        None,
    )


def test_a_scene_tells_the_next_stitch_how_large_it_is() -> None:
    made = members(3, [{"scale_from": "altitude", "scale_uncertainty": 0.01}, {}])
    measures = of_members(made)
    scene = merge_sidecars(made, quality_of(measures))
    twice = Member("scene", Sim3(2.0, np.eye(3), np.zeros(3)), scene)
    (again,) = of_members([twice])
    assert again.source == "altimeter"
    assert again.metres == pytest.approx(measures[0].metres / 2.0)
    assert again.uncertainty == pytest.approx(measures[0].uncertainty)


def test_the_world_takes_the_scale_that_is_believed_about_where_the_cameras_are() -> None:
    made = members(4, [{"scale_from": "altitude", "scale_uncertainty": 0.001}] * 2)
    truth = made[0].pose
    made = [dataclasses.replace(m, pose=truth.inverse() @ m.pose) for m in made]
    # GPS says 5 % too much, and is not sure.
    rough = Sim3(1.05 * truth.scale, truth.rotation, truth.translation)
    quality = [{**m.sidecar.quality, "metres_per_unit": truth.scale * m.pose.scale} for m in made]
    made = [
        dataclasses.replace(m, sidecar=dataclasses.replace(m.sidecar, quality=q))
        for m, q in zip(made, quality, strict=True)
    ]
    placed = Placed(Solution((), (), ()), World(rough, True, 0.02), 0.1, None)
    measures = measured(placed, made, [0, 1], [])
    assert [one.source for one in measures] == ["positions", "altimeter"]
    world = sized(placed.world, measures, made)
    assert world is not None and world.metric
    assert world.sim3.scale == pytest.approx(truth.scale)
    middle = np.mean(np.concatenate([m.pose.apply(m.sidecar.centres()) for m in made]), axis=0)
    assert np.allclose(world.sim3.apply(middle[None]), rough.apply(middle[None]))
    assert sized(placed.world, measures[:1], made) == placed.world
    # Without any word on what is up, the ground is level, in metres.
    flat = sized(None, measures[1:], made)
    assert flat is not None and flat.metric and flat.sim3.scale == pytest.approx(truth.scale)
    heights = flat.sim3.apply(made[0].pose.apply(made[0].sidecar.points))[:, 2]
    assert np.ptp(np.percentile(heights, [5, 95])) < 0.3
