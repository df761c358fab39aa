"""The Stitch stage with what was known before: pairs of an earlier version, operators' decisions,
clouds without a sidecar, positions and gravity."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stitch.gaussians import SH_C0, Gaussians
from stitch.known_edges import contents
from stitch.ply import read_header, read_ply, write_ply
from stitch.sidecar import Sidecar
from stitch.sim3 import Sim3
from stitch.splat import ROW
from tests.integration.test_stitch_stage import CONFIG, Farm, placed
from tests.stitch_world import (
    Seabed,
    ground_tones,
    random_gaussians,
    random_sim3,
    seen_ground,
    write_points,
)
from worker_agent.stages.api import StageFailure
from worker_agent.stages.sfm_georeference import to_enu

POSE = ("scale", "rotation", "translation")


@pytest.fixture
def farm(tmp_path: Path) -> Farm:
    return Farm(tmp_path)


def decision(farm: Farm, job: str, verdict: str, source: str, target: str, **more: Any) -> Any:
    files = [farm.root / job / "input" / f"{name}.npz" for name in (source, target)]
    return {"id": 1, "at": 1.8e9, "by": "ann@ship", "verdict": verdict, "source": source,
            "target": target, "points": [], "registrations": [contents(f) for f in files],
            **more}  # fmt: skip


def test_a_late_segment_registers_only_its_own_pairs(farm: Farm) -> None:
    world = Seabed(30)
    made = {f"S{k}": world.segment(2 * k, 2 * k + 5, random_sim3(world.rng)) for k in range(4)}
    for job, names in (("v1", ("S0", "S1", "S3")), ("v2", ("S0", "S1", "S2", "S3"))):
        members = [farm.member(job, name, "A", made[name], 0) for name in names]
        inputs: dict[str, Any] = {}
        if job == "v2":
            shutil.copy(farm.output("v1", "edges.json"), farm.root / "v2" / "input" / "edges.json")
            shutil.copy(farm.output("v1", "stitch.json"), farm.root / "v2" / "input" / "then.json")
            inputs = {"edges": ["input/edges.json"], "before": "input/then.json"}
        farm.run(job, "per_auv", members, **inputs)
    first, second = farm.report("v1"), farm.report("v2")
    assert (first["edges_reused"], second["edges_reused"]) == (0, 3)
    assert [entry["name"] for entry in second["members"]] == ["S0", "S1", "S2", "S3"]
    # Nor does it move what was there, unless its pairs say so.
    assert [entry["stands"] for entry in second["members"]] == [True, True, False, True]
    then = {entry["name"]: entry for entry in first["members"]}
    for entry in second["members"]:
        if entry["stands"]:
            assert all(entry[key] == then[entry["name"]][key] for key in POSE)
    before = {(e["source"], e["target"]): e for e in first["edges"]}
    assert all(e == before[e["source"], e["target"]] for e in second["edges"]
               if (e["source"], e["target"]) in before)  # fmt: skip
    # With nothing new the scene is the same file, which the store then need not be sent.
    members = [farm.member("v2b", n, "A", made[n], 0) for n in ("S0", "S1", "S3")]
    shutil.copy(farm.output("v1", "stitch.json"), farm.root / "v2b" / "input" / "then.json")
    farm.run("v2b", "per_auv", members, before="input/then.json")
    for then_file, now in (("v1.ply", "v2b.ply"), ("registration.npz",) * 2, ("masks.npz",) * 2):
        assert contents(farm.output("v2b", now)) == contents(farm.output("v1", then_file)), now
    # Nor is anything solved then, if the pairs of the version before are there.
    shutil.copy(farm.output("v1", "edges.json"), farm.root / "v2b" / "input" / "edges.json")
    farm.run("v2b", "per_auv", members, before="input/then.json", edges=["input/edges.json"])
    assert [farm.report(job)["parts_reused"] for job in ("v1", "v2", "v2b")] == [0, 0, 1]
    assert contents(farm.output("v2b", "v2b.ply")) == contents(farm.output("v1", "v1.ply"))
    # What is no report is told, and does no harm.
    (farm.root / "v2b" / "input" / "then.json").write_text('{"parts": []}')
    farm.run("v2b", "per_auv", members, before="input/then.json")
    assert not any(entry["stands"] for entry in farm.report("v2b")["members"])
    told = [event["message"] for event in farm.events("v2b") if event["kind"] == "warning"]
    assert any("placed anew" in line for line in told)
    # A sidecar that was made anew is registered anew.
    again = [farm.member("v3", n, "A", made[n], 0) for n in ("S0", "S1")]
    dataclasses.replace(made["S1"], error_px=made["S1"].error_px + 1).save(
        farm.root / "v3" / "input" / "S1.npz"
    )
    shutil.copy(farm.output("v2", "edges.json"), farm.root / "v3" / "input" / "edges.json")
    farm.run("v3", "per_auv", again, edges=["input/edges.json"])
    assert farm.report("v3")["edges_reused"] == 0


def test_what_an_operator_says_of_a_pair_counts(farm: Farm) -> None:
    world, other = Seabed(31), Seabed(32)
    poses = {name: random_sim3(world.rng) for name in ("A1", "A2", "A3")}
    sidecars = {
        "A1": world.segment(0, 6, poses["A1"]),
        "A2": world.segment(3, 9, poses["A2"]),
        "A3": other.segment(3, 9, poses["A3"]),  # of the same place, with another look
    }
    members = [farm.member("j", name, "A", sidecar, 0) for name, sidecar in sidecars.items()]
    spots = np.array([[3.5, -1, 0.1], [5.5, 1, 0.0], [4.0, 1, 0.1], [5.0, -1, 0.1]])
    points = [
        [poses["A3"].inverse().apply(s[None])[0].tolist(),
         poses["A1"].inverse().apply(s[None])[0].tolist()]
        for s in spots
    ]  # fmt: skip
    pin = decision(farm, "j", "pin", "A3", "A1", points=points)
    farm.run("j", "per_auv", members, decisions=[pin])
    report = farm.report("j")
    assert [entry["name"] for entry in report["members"]] == ["A1", "A2", "A3"]
    (pinned,) = [edge for edge in report["edges"] if edge["method"] == "pinned"]
    assert pinned["accepted"] and "pinned by ann@ship on 2027-01-15" in pinned["reason"]
    found = placed(report["members"][2])
    truth = poses["A1"].inverse() @ poses["A3"]
    assert np.allclose(found.apply(np.eye(3)), truth.apply(np.eye(3)), atol=1e-3)
    # Rejected, the good pair does not count either; both are then refused with what would help.
    reject = decision(farm, "j", "reject", "A1", "A2")
    with pytest.raises(StageFailure) as caught:
        farm.run("j", "per_auv", members, decisions=[reject])
    pairs = {(e["source"], e["target"]): e for e in caught.value.evidence["pairs"]}
    assert "rejected by ann@ship" in pairs["A2", "A1"]["reason"]
    assert set(caught.value.evidence["would_fix"]) >= {"A2", "A3"}
    # What was decided about another reconstruction of a member does not count.
    stale = pin | {"registrations": ["0" * 64, pin["registrations"][1]]}
    farm.run("j", "per_auv", members, decisions=[stale])
    assert [entry["name"] for entry in farm.report("j")["left_out"]] == ["A3"]
    warnings = [event["message"] for event in farm.events("j") if event["kind"] == "warning"]
    assert any("does not count" in line for line in warnings)


def test_clouds_without_a_sidecar_are_members_too(farm: Farm) -> None:
    """One of gaussians, one of plain coloured points; both of 6 m with 3 m in common."""
    rng = np.random.default_rng(33)
    tones = ground_tones(rng)
    folder = farm.root / "j" / "input"
    folder.mkdir(parents=True)
    frames, members = [], []
    for number, start in enumerate((0.0, 3.0)):
        frame = random_sim3(rng)
        frames.append(frame)
        points, tone = seen_ground(rng, tones, start)
        own = frame.inverse().apply(points)
        path = folder / f"C{number}.ply"
        if number == 0:
            any_ = random_gaussians(rng, len(own), 0)
            shade = np.repeat((tone[:, None] - 0.5) / SH_C0, 3, axis=1)
            solid = np.full(len(own), 3.0)
            write_ply(path, Gaussians(own, any_.scales, any_.quats, solid, shade, any_.shN))
        else:
            write_points(path, own, tone)
        members.append({"name": f"C{number}", "auv": "A", "ply": f"input/C{number}.ply"})
    artifacts = farm.run("j", "per_auv", members)
    assert "registration" not in [item.kind for item in artifacts.files]
    report = farm.report("j")
    (edge,) = report["edges"]
    assert (edge["method"], edge["accepted"]) == ("raster", True)
    found = placed(report["members"][1])
    truth = frames[0].inverse() @ frames[1]
    assert found.angle_to(truth) < 0.5
    assert found.scale / truth.scale == pytest.approx(1.0, abs=0.01)
    scene = frames[0].apply(read_ply(farm.output("j", "j.ply")).means)
    counts, _, _ = np.histogram2d(
        scene[:, 0], scene[:, 1], bins=(17, 5), range=((0.25, 8.75), (0.25, 2.75))
    )
    assert 0.7 < counts[7:11].mean() / counts[1:5].mean() < 1.3  # no doubling, no hole


def sailed(sidecar: Sidecar, frame: Sim3, origin: tuple[float, float]) -> Sidecar:
    """With the position of each camera, and gravity, as its receiver and its IMU tell them."""
    metres = frame.apply(sidecar.centres())
    (here, there), _ = to_enu([(*origin, 0.0), (origin[0] + 1e-4, origin[1] + 1e-4, 0.0)])
    east, north = (there - here)[:2] / 1e-4
    gps = np.stack(
        [origin[0] + metres[:, 1] / north, origin[1] + metres[:, 0] / east, metres[:, 2]], 1
    )
    return dataclasses.replace(sidecar, gps=gps)


def test_positions_make_the_scene_metric_and_its_maps_georeferenced(farm: Farm) -> None:
    world = Seabed(34, count=6000)
    origin = (43.2, 7.5)
    members = []
    for name, span in (("A1", (0, 7)), ("A2", (4, 12))):
        frame = random_sim3(world.rng)
        sidecar = sailed(world.segment(*span, frame), frame, origin)
        members.append(farm.member("j", name, "A", sidecar, 0))
        path = farm.root / "j" / "input" / f"{name}.ply"
        own = read_ply(path)
        wide = np.full_like(own.scales, np.log(0.03 / frame.scale))
        write_ply(path, dataclasses.replace(own, scales=wide, opacities=np.full(len(own), 3.0)))
    # Along a line alone, north cannot be told without gravity: the sidecars have both.
    config = {"stitch": {**CONFIG["stitch"], "tiles": True, "segment_ids": True, "harmonise": True}}
    artifacts = farm.run("j", "per_auv", members, config=config)
    report = farm.report("j")
    assert report["scale"]["metric"] and report["scale"]["from"] == "positions"
    first = Sidecar.load(farm.root / "j" / "input" / "A1.npz")
    assert report["scale"]["metres_per_unit"] == pytest.approx(2.0 / first.median_depth, rel=0.02)
    assert 0 < report["scale"]["uncertainty"] < 0.02 and report["scale"]["conflicts"] == []
    lat, lon, _ = report["georeference"]["origin"]
    assert (lat, lon) == pytest.approx(origin, abs=2e-4)
    assert report["members"][0]["uncertainty"] is None
    assert 0 < report["members"][1]["uncertainty"]["position"] < 0.1 * first.median_depth
    maps = report["maps"]
    assert maps["unit"] == "m"
    assert {f.path.rsplit("/")[-1] for f in artifacts.files} >= {
        *("orthomosaic.png", "orthomosaic.pgw", "orthomosaic.tif", "height.png", "height.tif"),
        *("graph.svg", "scene.tiles", "tiles.json"),
    }
    with Image.open(farm.output("j", "orthomosaic.png")) as picture:
        assert picture.size == (maps["columns"], maps["rows"])
        assert maps["columns"] * maps["pixel"] == pytest.approx(12.0, abs=0.6)
    step, _, _, down, _, _ = map(float, farm.output("j", "orthomosaic.pgw").read_text().split())
    assert step == -down == pytest.approx(maps["pixel"])
    with Image.open(farm.output("j", "height.tif")) as heights:
        values = np.array(heights)
        corner = heights.tag_v2[33922][3:5]
    known = values > -9000
    assert known.mean() == pytest.approx(maps["covered"], abs=0.01)
    assert np.ptp(np.percentile(values[known], [2, 98])) < 0.3  # of a seabed 15 cm rough
    # The north-west corner of the ground, 1.5 m north of where it begins, to a third of a metre.
    assert corner == pytest.approx((origin[1], origin[0] + 1.5 / 111_100), abs=3e-6)
    assert "<title>A2 to A1" in farm.output("j", "graph.svg").read_text()
    index = json.loads(farm.output("j", "tiles.json").read_text())
    rows = np.fromfile(farm.output("j", "scene.tiles"), ROW)
    assert len(rows) == index["gaussians"] == sum(tile["count"] for tile in index["tiles"])
    for tile in index["tiles"]:
        inside = rows["position"][tile["first"] : tile["first"] + tile["count"]]
        assert np.allclose(inside.min(axis=0), tile["low"])
    assert "segment" in (read_header(farm.output("j", "j.ply"))[0].names or ())
    assert report["members"][0]["tint"]["gain"]


def test_an_altimeter_and_a_ruler_make_a_scene_metric(farm: Farm) -> None:
    """The first one's altimeter is right; the ruler is surer, and says something else."""
    world = Seabed(36)
    frames = [Sim3(1.0, random_sim3(world.rng).rotation, np.ones(3)), random_sim3(world.rng)]
    made = [world.segment(0, 6, frames[0]), world.segment(3, 9, frames[1])]
    known = {"scale_from": "altitude", "scale_uncertainty": 0.01}
    made[0] = dataclasses.replace(made[0], quality={**made[0].quality, **known})
    members = [farm.member("j", f"A{k + 1}", "A", s, 0) for k, s in enumerate(made)]
    farm.run("j", "per_auv", members)
    report = farm.report("j")
    assert (report["scale"]["from"], report["maps"]["unit"]) == ("altimeter", "m")
    assert report["scale"]["metres_per_unit"] == pytest.approx(1.0, abs=0.01)
    assert report["georeference"] is None
    assert Sidecar.load(farm.output("j", "registration.npz")).quality["scale_from"] == "altimeter"
    ends = [frames[1].inverse().apply(np.array([[x, 0.0, 0.0]]))[0].tolist() for x in (4.0, 8.0)]
    ruler = decision(farm, "j", "scale", "A2", "A2", points=[ends], length_m=5.0,
                     give_or_take_m=0.01)  # fmt: skip
    config = {"stitch": {**CONFIG["stitch"], "aspects": True}}
    farm.run("j", "per_auv", members, decisions=[ruler], config=config)
    masks = np.load(farm.output("j", "masks.npz"))
    assert set(masks) == {f"{name}{what}" for name in ("A1", "A2")
                          for what in ("", "/cell", "/keys", "/steps")}  # fmt: skip
    assert masks["A2/steps"].shape == (len(masks["A2/keys"]), 4, 3)
    scale = farm.report("j")["scale"]
    assert scale["from"] == "ruler" and scale["metres_per_unit"] == pytest.approx(1.25, rel=0.01)
    assert {one["from"] for one in scale["measures"]} == {"altimeter", "ruler"}
    (conflict,) = scale["conflicts"]
    warned = [event["message"] for event in farm.events("j") if event["kind"] == "warning"]
    assert conflict in warned and "by altimeter" in conflict and "by ruler" in conflict


def test_a_pair_that_gravity_contradicts_is_refused(farm: Farm) -> None:
    """As of a wall that looks like the ground: the images agree, what is down does not."""
    world = Seabed(35)
    frame = random_sim3(world.rng)
    wall = world.segment(2, 8, frame)
    wall = dataclasses.replace(wall, gravity=np.tile([0.0, 1.0, 0.0], (len(wall.gravity), 1)))
    members = [
        farm.member("j", "A1", "A", world.segment(0, 6, random_sim3(world.rng)), 0),
        farm.member("j", "A2", "A", wall, 0),
    ]
    with pytest.raises(StageFailure, match="differs by 90 degrees"):
        farm.run("j", "per_auv", members)
