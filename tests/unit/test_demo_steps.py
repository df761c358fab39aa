"""The demo's bookkeeping: its directory, what is asked of the evaluation, what is summed up."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from dispatcher.core.model import Job, JobKind, JobState, Reason
from dispatcher.core.plan import StitchLevel
from dispatcher.demo import (
    DemoDirectory,
    evaluation_request,
    output_files,
    source_bytes_left,
    summarise,
    write_config,
    write_report,
)
from dispatcher.embedded import EmbeddedHost
from dispatcher.errors import UsageError
from dispatcher.results import Results, SegmentResult, StitchResult
from dispatcher.settings import PipelineConfig
from dispatcher.store.rows import Segment, Stitch


def job(name: str, state: JobState, kind: JobKind, **more: Any) -> Job:
    return Job(
        id=name, kind=kind, acquisition="demo", name=name, auv=None, created_at=0.0, state=state,
        **more,
    )  # fmt: skip


def segment(
    folder: Path, auv: str, label: str, state: JobState = JobState.DONE, **more: Any
) -> SegmentResult:
    files = {}
    for kind in ("registration", "ply", "preview") if state is JobState.DONE else ():
        files[kind] = folder / f"{label}.{kind}"
        files[kind].write_bytes(b"x" * 10)
    return SegmentResult(
        job=job(f"demo-{label}", state, JobKind.RECONSTRUCT, host="host-1", **more),
        segment=Segment(
            id=label, acquisition="demo", auv=auv, gopro_serial="C1", label=label,
            job=f"demo-{label}", clips=(), created_at=0.0,
        ),
        sfm={"registered": 22, "frames": 23, "reprojection_px": 0.25} if files else {},
        training={"psnr": 27.0, "ssim": 0.8, "gaussians": 1000} if files else {},
        verdict={"verdict": "pass"} if files else {},
        seconds=12.34,
        trimmed_bytes=100 if files else None,
        files=files,
    )  # fmt: skip


def stitch(
    folder: Path, auv: str | None, *members: str, state: JobState = JobState.DONE
) -> StitchResult:
    name = f"stitch-{auv or 'cross'}"
    passthrough = auv is not None and len(members) == 1
    files = {}
    for kind in ("stitch_report", "ply") if state is JobState.DONE and not passthrough else ():
        files[kind] = folder / f"{name}.{kind}"
        files[kind].write_bytes(b"{}")
    return StitchResult(
        stitch=Stitch(
            id=name, acquisition="demo", auv=auv, version=1, members=members, state=state,
            level=StitchLevel.PER_AUV if auv else StitchLevel.CROSS_AUV, created_at=0.0,
            job=None if passthrough else name, passthrough=passthrough,
        ),
        job=None if passthrough else job(name, state, JobKind.STITCH),
        files=files,
    )  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(
        segments=(
            segment(tmp_path, "auv-a", "a1"),
            segment(tmp_path, "auv-a", "a2"),
            segment(tmp_path, "auv-b", "b1"),
        ),
        stitches=(
            stitch(tmp_path, "auv-a", "demo-a1", "demo-a2"),
            stitch(tmp_path, "auv-b", "demo-b1"),
            stitch(tmp_path, None, "stitch-auv-a", "stitch-auv-b"),
        ),
    )


def host(folder: Path) -> EmbeddedHost:
    return EmbeddedHost(
        name="host-1", port=2222, user="me", identity_file=folder / "key", host_key="ssh-ed25519 A",
        work_dir=folder / "work", log=folder / "log",
    )  # fmt: skip


def test_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    first = DemoDirectory.create(tmp_path / "demo")
    first.database.write_text("old")
    again = DemoDirectory.create(tmp_path / "demo")
    assert not again.database.exists()


def test_nothing_else_is_ever_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not empty") as raised:
        DemoDirectory.create(tmp_path)
    assert "--out" in raised.value.line
    with pytest.raises(UsageError, match="not a directory"):
        DemoDirectory.create(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    assert DemoDirectory.create(tmp_path).root == tmp_path


def test_the_config_is_one_that_ingest_accepts(tmp_path: Path) -> None:
    directory = DemoDirectory.create(tmp_path / "demo")
    write_config(directory, 64)
    config = PipelineConfig.load(directory.config, {})
    assert config.frames.fps == 2.5
    assert config.sfm.camera_model == "SIMPLE_RADIAL"
    assert config.train.cpu.threads >= 1
    assert yaml.safe_load(directory.config.read_text())["sfm"]["threads"] >= 1


def test_the_request_nests_stitches_and_sees_through_a_single_segment(results: Results) -> None:
    request = evaluation_request(results)
    assert [row["name"] for row in request["segments"]] == ["a1", "a2", "b1"]
    pair, cross = request["stitches"]
    assert pair["members"] == [
        {"name": "demo-a1", "segment": "a1"},
        {"name": "demo-a2", "segment": "a2"},
    ]
    assert cross["level"] == "cross_auv"
    whole, single = cross["members"]
    assert whole["name"] == "stitch-auv-a"
    assert whole["members"] == pair["members"]
    assert single == {"name": "stitch-auv-b", "segment": "b1"}
    json.dumps(request)


def test_what_is_not_done_is_not_asked_for(tmp_path: Path) -> None:
    partial = Results(
        segments=(
            segment(tmp_path, "auv-a", "a1"),
            segment(tmp_path, "auv-a", "a2", JobState.ERROR),
        ),
        stitches=(stitch(tmp_path, "auv-a", "demo-a1", "demo-a2", state=JobState.HELD),),
    )
    request = evaluation_request(partial)
    assert [row["name"] for row in request["segments"]] == ["a1"]
    assert request["stitches"] == []


def test_complete_means_every_job_and_the_scene(tmp_path: Path, results: Results) -> None:
    assert results.complete
    assert not Results(segments=results.segments, stitches=results.stitches[:2]).complete
    assert not Results(segments=(), stitches=()).complete
    failed = segment(tmp_path, "auv-b", "b2", JobState.ERROR)
    assert not Results(segments=(*results.segments, failed), stitches=results.stitches).complete


def test_source_bytes_left_are_those_on_the_disks(tmp_path: Path) -> None:
    place = host(tmp_path)
    (place.work_dir / "demo" / "job" / "input").mkdir(parents=True)
    assert source_bytes_left([place]) == 0
    (place.work_dir / "demo" / "job" / "input" / "GX010101.MP4").write_bytes(b"12345")
    (place.work_dir / "demo" / "job" / "input" / "a.ply").write_bytes(b"123")
    assert source_bytes_left([place]) == 5


def test_the_summary_and_the_report_of_a_partial_demo(tmp_path: Path, results: Results) -> None:
    directory = DemoDirectory.create(tmp_path / "demo")
    held = segment(
        tmp_path, "auv-b", "b2", JobState.HELD, reason=Reason.NO_PARALLAX, message="b2 stands still"
    )
    partial = Results(segments=(*results.segments, held), stitches=results.stitches)
    errors = {"stitch-cross": {"error_m": 0.01, "error_fraction": 0.001}}
    summary = summarise(directory, partial, errors, [host(tmp_path)], time.monotonic())
    assert summary["segments"][0] == {
        "name": "a1", "auv": "auv-a", "state": "done", "frames": 23, "registered": 22,
        "reprojection_px": 0.25, "psnr": 27.0, "ssim": 0.8, "gaussians": 1000, "seconds": 12.3,
    }  # fmt: skip
    assert summary["segments"][3]["psnr"] is None
    assert [row["level"] for row in summary["stitches"]] == ["per_auv", "per_auv", "cross_auv"]
    assert summary["stitches"][2]["error_fraction"] == 0.001
    assert summary["trimmed_bytes"] == 300
    write_report(directory, summary, partial, [host(tmp_path)])
    page = directory.report.read_text()
    assert "b2 stands still" in page
    assert "cosma job retry demo-b2" in page
    assert page.count("data:image/jpeg;base64,") == 3
    assert [row.label for row in output_files(partial)] == ["all AUVs", "auv-a", "a1", "a2", "b1"]
