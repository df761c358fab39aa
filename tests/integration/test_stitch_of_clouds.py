"""A reconstruction without camera poses is a member of a stitch by its PLY alone."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dispatcher import stitching
from dispatcher.clock import ManualClock
from dispatcher.core.model import Job, JobKind, JobState, Stage, Step
from dispatcher.errors import HostError
from dispatcher.jobspec import Input, JobSpecs
from dispatcher.stitching import Stitching
from dispatcher.store.base import Store
from dispatcher.store.rows import Acquisition, ArtifactRow, Run, Segment
from dispatcher.store.sqlite import SqliteStore
from worker_agent.protocol import AttemptSpec
from worker_agent.stages.stitch_inputs import told

STITCH = "dive-stitch-a-v1"


async def survey(store: Store, root: Path, made: dict[str, tuple[str, ...]]) -> None:
    """Segments of one AUV that are done and collected; `made`: kinds of file of each."""
    await store.create_acquisition(Acquisition(id="dive", name="dive", created_at=1.0))
    await arrive(store, root, made)


async def arrive(store: Store, root: Path, made: dict[str, tuple[str, ...]]) -> None:
    for name, kinds in made.items():
        job = Job(
            id=name, kind=JobKind.RECONSTRUCT, acquisition="dive", name=name, auv="a",
            created_at=1.0, state=JobState.DONE, step=Step.REST, stage=Stage.COMPLETED,
        )  # fmt: skip
        segment = Segment(
            id=name, acquisition="dive", auv="a", gopro_serial="C", label=name, job=name,
            clips=(), created_at=1.0,
        )  # fmt: skip
        run = Run(job=name, config={}, sha256="", created_at=1.0)
        await store.create_segment(segment, job, run)
        rows = [
            ArtifactRow(
                job=name, kind=kind, path=f"output/{kind}", sha256="", bytes=1,
                local_path=str(root / f"{name}.{kind}"),
            )
            for kind in kinds
        ]  # fmt: skip
        await store.add_artifacts(name, rows)
    await Stitching(store, ManualClock()).plan("dive")


async def of_stitch(store: Store, name: str = STITCH) -> tuple[dict[str, Any], list[Input]]:
    """What the host is told, and what it is sent."""
    job = await store.job(name)
    assert job is not None
    specs = JobSpecs(store, lambda _: None)
    return await specs._stage_inputs(job), await specs.inputs(job)


async def test_a_cloud_goes_into_the_stitch_beside_a_member_with_poses(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "cosma.db")
    try:
        await survey(store, tmp_path, {"a1": ("ply", "registration"), "a2": ("ply",)})
        said, sent = await of_stitch(store)
    finally:
        await store.close()
    paths = {member["name"]: (member["ply"], member["registration"]) for member in said["members"]}
    assert paths == {"a1": ("input/a1.ply", "input/a1.npz"), "a2": ("input/a2.ply", None)}
    assert [item.path for item in sent] == ["input/a1.ply", "input/a1.npz", "input/a2.ply"]

    (tmp_path / "input").mkdir()
    for item in sent:
        (tmp_path / item.path).touch()
    spec = AttemptSpec(
        protocol=1, epoch=1, acquisition="dive", job=STITCH, attempt=1, stage="Stitch",
        run_dir=str(tmp_path), inputs=said,
    )  # fmt: skip
    assert [member.registration is None for member in told(spec).members] == [False, True]


async def test_without_its_ply_a_member_is_missing(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "cosma.db")
    try:
        await survey(store, tmp_path, {"a1": ("ply",), "a2": ("registration",)})
        with pytest.raises(HostError, match="no ply of a2 in the artifact store"):
            await of_stitch(store)
    finally:
        await store.close()


async def test_a_new_version_is_sent_what_the_one_before_found(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "cosma.db")
    try:
        await survey(store, tmp_path, {"a1": ("ply",), "a2": ("ply",)})
        first, sent_first = await of_stitch(store)
        rows = [
            ArtifactRow(
                job=STITCH, kind=kind, path=f"output/{name}", sha256="", bytes=1, host="h",
                local_path=str(tmp_path / name),
            )
            for kind, name in (("stitch_edges", "edges.json"), ("stitch_report", "stitch.json"))
        ]  # fmt: skip
        await store.add_artifacts(STITCH, rows)
        await arrive(store, tmp_path, {"a3": ("ply",)})
        said, sent = await of_stitch(store, "dive-stitch-a-v2")
    finally:
        await store.close()
    assert (first["edges"], first["before"], len(sent_first)) == ([], None, 2)
    assert (said["edges"], said["before"]) == (["input/edges.json"], "input/before.json")
    where = {item.path: (item.local, item.made_at) for item in sent[3:]}
    assert where == {
        "input/edges.json": (str(tmp_path / "edges.json"), f"dive/{STITCH}/output/edges.json"),
        "input/before.json": (str(tmp_path / "stitch.json"), f"dive/{STITCH}/output/stitch.json"),
    }


async def test_a_deadline_of_the_survey_makes_a_first_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock alone, while nothing else happens."""
    monkeypatch.setattr(stitching, "_DEADLINES_S", 0.0)
    store = await SqliteStore.open(tmp_path / "cosma.db")
    clock = ManualClock()
    try:
        await store.create_acquisition(Acquisition(id="dive", name="dive", created_at=1.0))
        began = clock.now()
        for name, state in (("a1", JobState.DONE), ("a2", JobState.DONE), ("a3", JobState.QUEUED)):
            job = Job(id=name, kind=JobKind.RECONSTRUCT, acquisition="dive", name=name, auv="a",
                      created_at=began, state=state,
                      step=Step.REST if state is JobState.DONE else Step.PLACE)  # fmt: skip
            segment = Segment(id=name, acquisition="dive", auv="a", gopro_serial="C", label=name,
                              job=name, clips=(), created_at=began)  # fmt: skip
            config = {"stitch": {"deadline_h": 2.0}}
            await store.create_segment(
                segment, job, Run(job=name, config=config, sha256="", created_at=began)
            )
        plans = Stitching(store, clock)
        clock.advance(3600 * 1.9)
        assert not await plans.plan("dive")
        assert await store.stitches() == []
        clock.advance(3600 * 0.2)
        told = asyncio.Event()
        timer = asyncio.create_task(plans.keep_deadlines(told.set))
        try:
            await asyncio.wait_for(told.wait(), 30)
            (stitch,) = await store.stitches()
        finally:
            timer.cancel()
            await asyncio.wait([timer])
    finally:
        await store.close()
    assert stitch.members == ("a1", "a2")
