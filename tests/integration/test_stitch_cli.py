"""What an operator sees of a pair, decides about it, and what the next version makes of that."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from typer.testing import CliRunner

from dispatcher.cli import stitch as command
from dispatcher.clock import ManualClock
from dispatcher.control_server import Answering
from dispatcher.core.model import Job, JobKind, JobState, Stage, Step
from dispatcher.errors import CosmaError
from dispatcher.executors.transfer import file_sha256
from dispatcher.jobspec import JobSpecs
from dispatcher.stitching import Stitching
from dispatcher.store.base import Store
from dispatcher.store.rows import Acquisition, ArtifactRow, Run, Segment
from dispatcher.store.sqlite import SqliteStore
from stitch.gaussians import Gaussians
from stitch.ply import write_ply
from stitch.sim3 import Sim3
from tests.stitch_world import (
    Seabed,
    ground_tones,
    random_gaussians,
    random_sim3,
    seen_ground,
    write_points,
)

T = TypeVar("T")
FIRST, SECOND = "dive-stitch-a-v1", "dive-stitch-a-v2"


@dataclass
class Survey:
    """Two segments of one AUV that overlap, done and collected; their stitch is planned."""

    root: Path
    poses: dict[str, Sim3]
    world: Seabed

    @property
    def database(self) -> Path:
        return self.root / "cosma.db"

    def with_store(self, work: Callable[[Store], Awaitable[T]]) -> T:
        async def run() -> T:
            store = await SqliteStore.open(self.database)
            try:
                return await work(store)
            finally:
                await store.close()

        return asyncio.run(run())

    def run(self, *words: str) -> Any:
        done = CliRunner().invoke(command.app, [*words, "--db", str(self.database)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return json.loads(done.output) if "--json" in words else done.output

    def answered(self) -> list[str]:
        """As a dispatcher answers what was asked; what it plans."""
        planned: list[str] = []

        async def work(store: Store) -> None:
            jobs = {job.id: job for job in await store.load_jobs()}

            async def never(*_: Any) -> None:
                raise AssertionError("a decision is no event of a job")

            answering = Answering(store, ManualClock(), lambda: jobs, never, never, planned.append)
            await answering.answer_all()
            for acquisition in planned:
                await Stitching(store, ManualClock()).plan(acquisition)

        self.with_store(work)
        return planned

    def told(self, stitch: str) -> dict[str, Any]:
        """What a host is told of it."""

        async def work(store: Store) -> dict[str, Any]:
            job = await store.job(stitch)
            assert job is not None
            return await JobSpecs(store, lambda _: None)._stage_inputs(job)

        return self.with_store(work)


@pytest.fixture
def survey(tmp_path: Path) -> Survey:
    world = Seabed(0, count=3000)
    made = Survey(tmp_path, {}, world)

    async def fill(store: Store) -> None:
        await store.create_acquisition(Acquisition(id="dive", name="dive", created_at=1.0))
        for name, span in (("a1", (0, 7)), ("a2", (4, 11))):
            pose = made.poses[name] = random_sim3(world.rng)
            sidecar = world.segment(*span, pose)
            any_ = random_gaussians(world.rng, len(sidecar.points), 0)
            ply, npz = tmp_path / f"{name}.ply", tmp_path / f"{name}.npz"
            write_ply(ply, Gaussians(sidecar.points, any_.scales, any_.quats, any_.opacities + 3,
                                     any_.sh0, any_.shN))  # fmt: skip
            sidecar.save(npz)
            job = Job(id=name, kind=JobKind.RECONSTRUCT, acquisition="dive", name=name, auv="a",
                      created_at=1.0, state=JobState.DONE, step=Step.REST,
                      stage=Stage.COMPLETED)  # fmt: skip
            run = Run(job=name, config={"stitch": {"ratio": 0.85}}, sha256="", created_at=1.0)
            segment = Segment(id=name, acquisition="dive", auv="a", gopro_serial="C", label=name,
                              job=name, clips=(), created_at=1.0)  # fmt: skip
            await store.create_segment(segment, job, run)
            rows = [
                ArtifactRow(job=name, kind=kind, path=f"output/{path.name}", local_path=str(path),
                            sha256=file_sha256(path), bytes=path.stat().st_size)
                for kind, path in (("ply", ply), ("registration", npz))
            ]  # fmt: skip
            await store.add_artifacts(name, rows)
        await Stitching(store, ManualClock()).plan("dive")

    made.with_store(fill)
    return made


def place(survey: Survey, at: np.ndarray) -> str:
    """One place of the world in the frames of both members."""
    frames = [survey.poses[name].inverse().apply(at[None])[0] for name in ("a2", "a1")]
    return "=".join(",".join(f"{value:.9g}" for value in frame) for frame in frames)


def test_pairs_and_cost_are_told_before_anything_is_computed(survey: Survey) -> None:
    (answer,) = survey.run("plan", FIRST, "--json")
    (pair,) = answer["pairs"]
    assert (pair["source"], pair["target"], pair["known"]) == ("a2", "a1", False)
    assert pair["frames"] > 0 and 0 < answer["register_cpu_s"] == pytest.approx(
        pair["cpu_s"], abs=0.01
    )
    assert answer["gaussians"] > 2000
    assert "dive, a: 1 pairs, 0 known already" in survey.run("plan", "Dive")


def test_three_places_make_a_pair_of_the_next_version(survey: Survey) -> None:
    spots = np.array([[4.5, -1, 0.1], [6.5, 1, 0.1], [5.0, 1, 0.1]])
    words = [word for spot in spots for word in ("--point", place(survey, spot))]
    said = survey.run("pin", FIRST, "a2", "a1", *words)
    assert "noted; no dispatcher runs" in said
    assert survey.answered() == ["dive"]
    told = survey.told(SECOND)
    (decision,) = told["decisions"]
    assert (decision["verdict"], decision["source"], decision["target"]) == ("pin", "a2", "a1")
    assert "@" in decision["by"] and len(decision["points"]) == 3
    assert list(decision["registrations"]) == [
        file_sha256(survey.root / f"{n}.npz") for n in ("a2", "a1")
    ]
    shown = survey.run("show", SECOND)
    assert "decided: a2 to a1: pin by " in shown and "not in this version" not in shown
    assert "not in this version" in survey.run("show", FIRST)
    assert survey.told(FIRST)["decisions"] == []
    assert survey.answered() == []  # once


def test_a_held_stitch_shows_its_pairs_and_what_would_let_them_in(survey: Survey) -> None:
    from stitch.publish import edge_entry
    from stitch.register import Edge
    from stitch.remedy import remedy
    from stitch.score import Thresholds, judge

    edge = Edge(1, 0, 20, 9, 0.5, 0.00123, Sim3.identity())
    thresholds = Thresholds(min_inliers=12, min_share=0.2, min_hull_share=0.1)
    verdict, names = judge(edge, thresholds), ("a1", "a2")
    would_fix = remedy(names, edge, verdict, thresholds, ())
    evidence = {"pairs": [edge_entry(edge, names, verdict)], "would_fix": {"a2": would_fix}}
    with sqlite3.connect(survey.database) as database:
        database.execute(
            "INSERT INTO attempts (job, attempt, stage, host, state, epoch, committed_at, exit, "
            "stimulus) VALUES (?, 1, 'Stitch', 'gpu-a', 'failed', 1, 1.0, ?, 'test')",
            (FIRST, json.dumps({"outcome": {"evidence": evidence}})),
        )
    shown = survey.run("show", FIRST, "--pictures", str(survey.root / "seen"))
    line = next(row for row in shown.splitlines() if "12 needed" in row)
    assert {"a2", "a1", "points", "9", "0.45", "0.12%"} <= set(line.split())
    assert "would let a2 in: At least 3 more common points are needed" in shown
    picture = next(row for row in shown.splitlines() if row.startswith("picture: "))
    assert Path(picture.split()[1]).read_bytes().startswith(b"\x89PNG")


def test_clicks_into_the_picture_are_places_on_the_ground(survey: Survey) -> None:
    rows = survey.run("show", FIRST, "--pictures", str(survey.root / "seen"), "--json")["pictures"]
    (row,) = rows
    assert Path(row["picture"]).read_bytes().startswith(b"\x89PNG")
    assert row["inliers"] > 300
    from stitch.look import _right, panel
    from stitch.pairs import Known
    from stitch.sidecar import Sidecar

    panels = [
        panel(Known(survey.root / f"{n}.ply", Sidecar.load(survey.root / f"{n}.npz")))
        for n in ("a2", "a1")
    ]
    spots = survey.world.points[(np.abs(survey.world.points[:, 0] - 5.5) < 1.0)][[0, 40, 90]]
    words = []
    for spot in spots:
        here, there = (
            one.pixels(survey.poses[name].inverse().apply(spot[None]))[0]
            for one, name in zip(panels, ("a2", "a1"), strict=True)
        )
        click = f"{here[0]:.2f},{here[1]:.2f}={there[0] + _right(panels[0]):.2f},{there[1]:.2f}"
        words += ["--click", click]
    survey.run("pin", FIRST, "a2", "a1", *words)
    survey.answered()
    (decision,) = survey.told(SECOND)["decisions"]
    for (here, there), spot in zip(decision["points"], spots, strict=True):
        for name, at in (("a2", here), ("a1", there)):
            found = survey.poses[name].apply(np.array([at]))[0]
            assert np.linalg.norm(found - spot) < 0.15


def test_what_is_taken_back_makes_a_version_without_it(survey: Survey) -> None:
    survey.run("reject", FIRST, "a1", "a2")
    survey.answered()
    survey.run("withdraw", SECOND, "a2", "a1")
    survey.answered()
    assert len(survey.told(SECOND)["decisions"]) == 1
    rows = survey.run("ls", "--json")
    assert [row["stitch"] for row in rows] == [FIRST, SECOND, "dive-stitch-a-v3"]
    assert survey.told("dive-stitch-a-v3")["decisions"] == []
    assert survey.answered() == []


def test_a_known_length_makes_a_version_that_is_metric(survey: Survey) -> None:
    report = {"reference": "a1", "members": [], "edges": [], "parts": [],
              "scale": {"metric": False}}  # fmt: skip
    survey.with_store(lambda store: store.update_stitch(FIRST, report=report))
    assert "scale: arbitrary" in survey.run("show", FIRST)
    survey.run("scale", FIRST, "--from", "-1,2.5,3", "--to", "1,2,3", "--length", "1.5",
               "--give-or-take", "0.01")  # fmt: skip
    survey.answered()
    (told,) = survey.told(SECOND)["decisions"]
    assert (told["verdict"], told["source"], told["target"]) == ("scale", "a1", "a1")
    assert [list(end) for end in told["points"][0]] == [[-1, 2.5, 3], [1, 2, 3]]
    assert (told["length_m"], told["give_or_take_m"]) == (1.5, 0.01)
    assert list(told["registrations"]) == [file_sha256(survey.root / "a1.npz")] * 2
    assert "decided: a1: a length of 1.5 m by " in survey.run("show", SECOND)
    survey.run("scale", SECOND, "--withdraw", "--member", "a1")
    survey.answered()
    assert survey.told("dive-stitch-a-v3")["decisions"] == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("approve", FIRST, "a1", "b9"), "no such member"),
        (("reject", "nothing", "a1", "a2"), "no such stitch"),
        (("pin", FIRST, "a1", "a2", "--point", "1,2=3,4"), "not a pair of places"),
        (("pin", FIRST, "a1", "a2", "--point", "1,2,3=3,4,5"), "3 are needed"),
        (("approve", FIRST, "a1", "a1"), "itself"),
        (("scale", FIRST, "--from", "1,2,3", "--to", "1,2,4", "--length", "1"), "no scene yet"),
        (("scale", FIRST, "--member", "a1", "--from", "1,2", "--to", "1,2,4", "--length", "1"),
         "not a place"),
        (("scale", FIRST, "--member", "a1", "--from", "1,2,3", "--length", "1"), "Give --from"),
        (("scale", FIRST, "--member", "a1", "--from", "1,2,3", "--to", "1,2,3", "--length", "1"),
         "the same place"),
        (("scale", FIRST, "--member", "a1", "--from", "1,2,3", "--to", "1,2,4", "--length", "-1"),
         "a length of -1 m"),
    ],
)  # fmt: skip
def test_a_decision_that_makes_no_sense_is_refused_in_one_line(
    survey: Survey, words: tuple[str, ...], says: str
) -> None:
    with pytest.raises(CosmaError) as caught:
        survey.run(*words)
    assert says in caught.value.line and "\n" not in caught.value.line
    assert survey.answered() == []


def test_a_cloud_from_elsewhere_becomes_a_member(survey: Survey) -> None:
    points, shades = seen_ground(survey.world.rng, ground_tones(survey.world.rng), 0.0, 2000)
    file = write_points(survey.root / "wreck.ply", points, shades)
    words = ("add", str(file), "-a", "Dive", "--auv", "a")
    store = ("--artifacts", str(survey.root / "kept"))
    added = survey.run(*words, *store, "--json")
    assert (added["job"], added["count"], added["new"]) == ("dive-a-wreck", 2000, True)
    again = survey.run(*words, *store, "--json")
    assert again == added | {"new": False}

    async def planned(store: Store) -> list[Any]:
        await Stitching(store, ManualClock()).plan("dive")
        job = await store.job(SECOND)
        assert job is not None
        return await JobSpecs(store, lambda _: None).inputs(job)

    copy = {item.path: item for item in survey.with_store(planned)}["input/dive-a-wreck.ply"]
    assert Path(copy.local).read_bytes() == file.read_bytes()
    assert copy.sha256 == file_sha256(file)
    (answer,) = survey.run("plan", SECOND, "--json")
    pairs = {(row["source"], row["target"]) for row in answer["pairs"]}
    assert {("dive-a-wreck", "a1"), ("dive-a-wreck", "a2")} <= pairs
    write_points(file, points[:1000], shades[:1000])
    with pytest.raises(CosmaError, match="another segment has this name") as caught:
        survey.run(*words, *store)
    assert "--name" in caught.value.line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        (b"ply\nformat binary_little_endian 1.0\nelement vertex 9\nproperty float x\n"
         b"property float y\nproperty float z\nend_header\n" + bytes(108), "coloured points"),
    ],
)  # fmt: skip
def test_what_is_no_cloud_is_not_added(survey: Survey, content: bytes | None, says: str) -> None:
    file = survey.root / "other.ply"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CosmaError) as caught:
        survey.run("add", str(file), "-a", "Dive", "--auv", "a")
    assert says in caught.value.line and str(file) in caught.value.line
    assert "\n" not in caught.value.line and caught.value.exit_code == 2


def test_a_member_whose_files_are_gone_is_named(survey: Survey) -> None:
    (survey.root / "a2.npz").unlink()
    with pytest.raises(CosmaError, match="a2: its results are not here"):
        survey.run("plan", FIRST)
