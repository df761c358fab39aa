"""The Stitch stage as the agent calls it, on made-up members."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stitch.gaussians import Gaussians
from stitch.ply import read_ply, write_ply
from stitch.sidecar import Sidecar
from stitch.sim3 import Sim3
from tests.stitch_world import Seabed, random_gaussians, random_sim3
from worker_agent.protocol import AttemptSpec, FailureCode
from worker_agent.stages.api import Artifacts, Reporter, StageFailure
from worker_agent.stages.stitch_scene import main

CONFIG: dict[str, Any] = {
    "stitch": {"ratio": 0.85, "min_inliers": 12, "min_inlier_share": 0.2, "min_hull_share": 0.1}
}


class Farm:
    """Run directories of stitches under one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def member(
        self, job: str, name: str, auv: str, sidecar: Sidecar, degree: int
    ) -> dict[str, str]:
        """Input files of one member: a gaussian on each of its sidecar's points."""
        folder = self.root / job / "input"
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        made = random_gaussians(rng, len(sidecar.points), degree)
        write_ply(
            folder / f"{name}.ply",
            Gaussians(sidecar.points, made.scales, made.quats, made.opacities, made.sh0, made.shN),
        )
        sidecar.save(folder / f"{name}.npz")
        return {
            "name": name,
            "auv": auv,
            "ply": f"input/{name}.ply",
            "registration": f"input/{name}.npz",
        }

    def output(self, job: str, name: str) -> Path:
        return self.root / job / "output" / name

    def run(
        self,
        job: str,
        level: str,
        members: list[dict[str, str]],
        config: dict[str, Any] = CONFIG,
        **inputs: Any,
    ) -> Artifacts:
        run_dir = self.root / job
        run_dir.mkdir(parents=True, exist_ok=True)
        spec = AttemptSpec(
            protocol=1,
            epoch=1,
            acquisition="survey",
            job=job,
            attempt=1,
            stage="Stitch",
            run_dir=str(run_dir),
            config=config,
            inputs={"level": level, "name": job, "members": members, **inputs},
        )
        events = os.open(run_dir / "events.jsonl", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        try:
            return main(spec, Reporter(events, 1, interval_s=0.0))
        finally:
            os.close(events)

    def events(self, job: str) -> list[dict[str, Any]]:
        lines = (self.root / job / "events.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def report(self, job: str) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.output(job, "stitch.json").read_text())
        return report


@pytest.fixture
def farm(tmp_path: Path) -> Farm:
    return Farm(tmp_path)


def placed(entry: dict[str, Any]) -> Sim3:
    return Sim3(entry["scale"], np.array(entry["rotation"]), np.array(entry["translation"]))


def test_segments_become_an_auv_and_auvs_a_scene(farm: Farm) -> None:
    world = Seabed(0, count=3000)
    frames = {name: random_sim3(world.rng) for name in ("A1", "A2", "B1")}
    spans = {"A1": (0.0, 6.0), "A2": (3.0, 9.0), "B1": (5.0, 12.0)}
    made = {name: world.segment(*spans[name], frames[name]) for name in frames}
    farm.run(
        "scene-a",
        "per_auv",
        [
            farm.member("scene-a", "A1", "A", made["A1"], 1),
            farm.member("scene-a", "A2", "A", made["A2"], 3),
        ],
    )
    farm.run("scene-b", "per_auv", [farm.member("scene-b", "B1", "B", made["B1"], 0)])
    folder = farm.root / "all" / "input"
    folder.mkdir(parents=True)
    members = []
    for auv in ("a", "b"):
        job = f"scene-{auv}"
        (folder / f"{job}.ply").symlink_to(farm.output(job, f"{job}.ply"))
        (folder / f"{job}.npz").symlink_to(farm.output(job, "registration.npz"))
        members.append(
            {
                "name": job,
                "auv": auv.upper(),
                "ply": f"input/{job}.ply",
                "registration": f"input/{job}.npz",
            }
        )
    artifacts = farm.run("all", "cross_auv", members)

    assert [item.kind for item in artifacts.files] == [
        *("ply", "registration", "stitch_masks", "orthomosaic", "height_map", "world_file"),
        *("world_file", "stitch_graph", "stitch_edges", "stitch_report"),
    ]
    names = ["all.ply", "registration.npz", "masks.npz", "orthomosaic.png", "height.png"]
    names += ["orthomosaic.pgw", "height.pgw", "graph.svg", "edges.json", "stitch.json"]
    assert [item.path for item in artifacts.files] == [f"output/{name}" for name in names]
    per_auv, scene = farm.report("scene-a"), farm.report("all")
    assert [entry["name"] for entry in per_auv["members"]] == ["A1", "A2"]
    assert scene["reference"] == "scene-a"
    assert scene["left_out"] == []
    to_world = frames["A1"] @ placed(scene["members"][0]).inverse()
    chains = {
        "A1": placed(scene["members"][0]) @ placed(per_auv["members"][0]),
        "A2": placed(scene["members"][0]) @ placed(per_auv["members"][1]),
        "B1": placed(scene["members"][1]),
    }
    for name, chain in chains.items():
        points = made[name].points
        error = (to_world @ chain).apply(points) - frames[name].apply(points)
        assert np.linalg.norm(error, axis=1).max() < 0.03, name

    merged = read_ply(farm.output("all", "all.ply"))
    assert merged.sh_degree == 3
    assert len(merged) == scene["gaussians"] == artifacts.metrics["gaussians"]
    assert len(merged) == pytest.approx(3000, rel=0.05)
    world_means = to_world.apply(merged.means)
    nearest = np.linalg.norm(world_means[:, None, :2] - world.points[None, :, :2], axis=2).min(1)
    assert nearest.max() < 0.04
    names = Sidecar.load(farm.output("all", "registration.npz")).keyframe_names
    assert names[0] == "scene-a/A1/f000000.jpg"
    assert names[-1].startswith("scene-b/f")


def test_progress_names_each_pair_with_its_numbers(farm: Farm) -> None:
    world = Seabed(1)
    spans = {"S1": (0, 6), "S2": (2, 8), "S3": (4, 11)}
    members = [
        farm.member("j", name, "A", world.segment(*span, random_sim3(world.rng)), 0)
        for name, span in spans.items()
    ]
    farm.run("j", "per_auv", members)
    progress = [event for event in farm.events("j") if event["kind"] == "progress"]
    fractions = [event["fraction"] for event in progress]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert sum(" agree" in event["message"] for event in progress) == 3


def test_a_single_member_passes_through_byte_for_byte(farm: Farm) -> None:
    world = Seabed(2)
    member = farm.member("one", "A1", "A", world.segment(0, 7, random_sim3(world.rng)), 2)
    artifacts = farm.run("one", "per_auv", [member])
    source = farm.root / "one" / "input"
    assert farm.output("one", "one.ply").read_bytes() == (source / "A1.ply").read_bytes()
    assert farm.output("one", "registration.npz").read_bytes() == (source / "A1.npz").read_bytes()
    entry = farm.report("one")["members"][0]
    assert (entry["scale"], entry["rotation"]) == (1.0, np.eye(3).tolist())
    assert artifacts.metrics["members"] == 1


def test_two_segments_without_common_ground_are_held_with_the_numbers(farm: Farm) -> None:
    one, other = Seabed(3), Seabed(4)
    members = [
        farm.member("j", "A1", "A", one.segment(0, 7, random_sim3(one.rng)), 0),
        farm.member("j", "A2", "A", other.segment(0, 7, random_sim3(other.rng)), 0),
    ]
    with pytest.raises(StageFailure) as caught:
        farm.run("j", "per_auv", members)
    failure = caught.value
    assert failure.reason is FailureCode.STITCH_EVIDENCE_WEAK
    assert "A2" in failure.message
    assert "\n" not in failure.message
    assert failure.advice
    (pair,) = failure.evidence["pairs"]
    assert not pair["accepted"]
    assert pair["inliers"] < 12
    assert failure.evidence["components"] == [["A1"], ["A2"]]
    assert json.loads(json.dumps(failure.evidence)) == failure.evidence
    assert not farm.output("j", "j.ply").exists()


def three_with_a_stranger(farm: Farm, job: str) -> list[dict[str, str]]:
    world, other = Seabed(5), Seabed(6)
    return [
        farm.member(job, "S1", "A", world.segment(0, 7, random_sim3(world.rng)), 0),
        farm.member(job, "S2", "B", other.segment(0, 7, random_sim3(other.rng)), 0),
        farm.member(job, "S3", "C", world.segment(4, 11, random_sim3(world.rng)), 0),
    ]


def test_one_stranger_of_three_segments_is_left_out(farm: Farm) -> None:
    artifacts = farm.run("j", "per_auv", three_with_a_stranger(farm, "j"))
    report = farm.report("j")
    assert [entry["name"] for entry in report["members"]] == ["S1", "S3"]
    (left,) = report["left_out"]
    assert left["name"] == "S2"
    assert "12 inliers needed" in left["reason"] or "12 needed" in left["reason"]
    assert len(report["edges"]) == 3
    assert artifacts.metrics["left_out"] == 1
    warnings = [event for event in farm.events("j") if event["kind"] == "warning"]
    assert "S2 is left out" in warnings[0]["message"]


def test_across_auvs_none_may_be_left_out(farm: Farm) -> None:
    with pytest.raises(StageFailure) as caught:
        farm.run("j", "cross_auv", three_with_a_stranger(farm, "j"))
    assert caught.value.reason is FailureCode.STITCH_EVIDENCE_WEAK
    assert caught.value.evidence["left_out"] == ["S2"]


def test_two_of_four_are_too_few_to_deliver(farm: Farm) -> None:
    other = Seabed(7)
    members = [
        *three_with_a_stranger(farm, "j"),
        farm.member("j", "S4", "A", other.segment(0, 7, random_sim3(other.rng)), 0),
    ]
    with pytest.raises(StageFailure) as caught:
        farm.run("j", "per_auv", members)
    assert caught.value.message.startswith("2 of 4 segments")


def test_missing_and_damaged_inputs_are_named(farm: Farm) -> None:
    members = three_with_a_stranger(farm, "j")
    ply = farm.root / "j" / members[0]["ply"]
    whole = ply.read_bytes()
    ply.write_bytes(whole[:-100])
    with pytest.raises(StageFailure, match=r"S1\.ply: cut short") as cut:
        farm.run("j", "per_auv", members)
    assert cut.value.reason is FailureCode.INPUT_UNREADABLE
    ply.unlink()
    with pytest.raises(StageFailure, match=r"input/S1\.ply of member S1") as gone:
        farm.run("j", "per_auv", members)
    assert gone.value.reason is FailureCode.INPUT_MISSING
    ply.write_bytes(whole)
    (farm.root / "j" / members[2]["registration"]).write_bytes(b"PK")
    with pytest.raises(StageFailure, match=r"S3\.npz") as sidecar:
        farm.run("j", "per_auv", members)
    assert sidecar.value.reason is FailureCode.INPUT_UNREADABLE


@pytest.mark.parametrize(
    ("level", "members", "says"),
    [
        ("sideways", [{"name": "a", "auv": "A", "ply": "x", "registration": "y"}], "sideways"),
        ("per_auv", [], "0 members"),
        ("per_auv", [{"name": "a"}], "auv"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(
    farm: Farm, level: str, members: list[dict[str, str]], says: str
) -> None:
    with pytest.raises(StageFailure, match=says) as caught:
        farm.run("j", level, members)
    assert caught.value.reason is FailureCode.CONFIG_INVALID


def test_segments_that_hang_together_apart_from_the_scene_are_one_of_their_own(farm: Farm) -> None:
    world, other = Seabed(20), Seabed(21)
    spans = [(0, 5), (2, 7), (4, 9), (6, 11)]
    members = [
        farm.member("j", f"S{k}", "A", world.segment(*span, random_sim3(world.rng)), 0)
        for k, span in enumerate(spans)
    ]
    members += [
        farm.member("j", f"T{k}", "A", other.segment(*span, random_sim3(other.rng)), 0)
        for k, span in enumerate(spans[:2])
    ]
    artifacts = farm.run("j", "per_auv", members)
    report = farm.report("j")
    assert [entry["name"] for entry in report["members"]] == ["S0", "S1", "S2", "S3"]
    (part,) = report["parts"]
    assert [entry["name"] for entry in part["members"]] == ["T0", "T1"]
    assert {entry["name"] for entry in report["left_out"]} == {"T0", "T1"}
    assert len(read_ply(farm.output("j", part["ply"]))) == part["gaussians"]
    assert ("ply_part", "output/j-part2.ply") in [(f.kind, f.path) for f in artifacts.files]
    warnings = [event["message"] for event in farm.events("j") if event["kind"] == "warning"]
    assert any("T0, T1 hang together" in message for message in warnings)


def test_a_stitch_can_be_undone_from_its_masks(farm: Farm) -> None:
    world = Seabed(22)
    members = [
        farm.member("j", name, "A", world.segment(*span, random_sim3(world.rng)), 0)
        for name, span in (("S1", (0, 7)), ("S2", (4, 11)))
    ]
    farm.run("j", "per_auv", members)
    scene = read_ply(farm.output("j", "j.ply"))
    masks = np.load(farm.output("j", "masks.npz"))
    first = 0
    for entry, member in zip(farm.report("j")["members"], members, strict=True):
        source = read_ply(farm.root / "j" / member["ply"])
        kept = source.select(np.unpackbits(masks[entry["name"]], count=len(source)).astype(bool))
        back = placed(entry).inverse().apply(scene.means[first : first + len(kept)])
        assert np.allclose(back, kept.means, atol=1e-4)
        first += len(kept)
    assert first == len(scene)


def test_a_bent_segment_is_quarantined_and_the_rest_delivered(farm: Farm) -> None:
    world = Seabed(23)
    bends = {"S1": 0.0, "S2": 0.9, "S3": 0.0}
    made = {
        name: world.segment(a, a + 8, random_sim3(world.rng), bend_m=bend)
        for a, (name, bend) in zip((0, 1, 2), bends.items(), strict=True)
    }
    made["S2"] = dataclasses.replace(made["S2"], error_px=made["S2"].error_px + 1.0)
    farm.run("j", "per_auv", [farm.member("j", name, "A", one, 0) for name, one in made.items()])
    report = farm.report("j")
    assert [entry["name"] for entry in report["members"]] == ["S1", "S3"]
    (left,) = report["left_out"]
    assert (left["name"], left["quarantined"]) == ("S2", True)
    own, others = float(made["S2"].error_px.mean()), 0.5
    assert (
        f"looks bent ({own:.2f} px of reprojection error, the others {others:.1f}"
        in (left["reason"])
    )
