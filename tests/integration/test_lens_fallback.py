"""A lens of a profile that gives no model costs one rung: then SfM begins with a guess."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from dispatcher.settings import PipelineConfig
from worker_agent.protocol import AttemptSpec
from worker_agent.stages import sfm
from worker_agent.stages.api import Reporter, StageFailure
from worker_agent.stages.manifest import camera_of
from worker_agent.stages.sfm_mapping import Request

SIZE = (960, 540)
CONFIG = PipelineConfig().as_dict()
CLIP = {"device": None, "settings": {"MINF": "HERO10 Black", "VFOV": "L"}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "output").mkdir()
    camera, _ = camera_of(CONFIG["sfm"], [CLIP], (1920, 1080), SIZE)
    rows = [{"name": f"f{i:06d}.jpg", "gravity": None} for i in range(1, 9)]
    manifest = {"frames": rows, "camera": {**camera, "source_width": 1920, "source_height": 1080}}
    (tmp_path / "output" / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def model(focal: float) -> dict[str, Any]:
    images = [
        {"name": f"f{i:06d}.jpg", "points": 200, "centre": [0.1 * i, 0.0, 0.0], "depth": 2.0,
         "rotation": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}
        for i in range(1, 9)
    ]  # fmt: skip
    return {
        "mapper": "global", "pairs": "sequential", "path": "", "images": images, "points": 2000,
        "reprojection_px": 0.5, "focal_px": focal, "triangulation_deg": 8.0, "relief": 0.1,
        "links": [300] * 7,
    }  # fmt: skip


def climb(run: Path, monkeypatch: pytest.MonkeyPatch, registers: str) -> tuple[list[str], Any]:
    """Steps and their lens, and what is published; only the lens `registers` makes a model."""
    climbed: list[str] = []

    def played(step: str, ordered: Request, tick: Any) -> dict[str, Any]:
        climbed.append(f"{ordered.camera['model']} {step}")
        if step == "match":
            return {"images": 8, "keypoints_median": 500, "verified_pairs": 20,
                    "motion_share": 0.2, "planar_share": 0.5}  # fmt: skip
        good = ordered.camera["model"] == registers
        return {"candidate": model(ordered.camera["params"][0]) if good else None}

    monkeypatch.setattr(sfm, "run_step", played)
    monkeypatch.setattr(sfm._Ladder, "publish", lambda self, _: self._request.camera)
    spec = AttemptSpec(
        protocol=1, epoch=1, acquisition="s", job="s", attempt=1, stage="", run_dir=str(run),
        config=CONFIG, inputs={},
    )  # fmt: skip
    events = os.open(run / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        return climbed, sfm.main(spec, Reporter(events, 1, interval_s=0.0))
    except StageFailure as failure:
        return climbed, failure
    finally:
        os.close(events)


def told(run: Path, kind: str) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["kind"] == kind]


def test_a_lens_that_fits_is_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    climbed, camera = climb(run, monkeypatch, "RADIAL")
    assert camera["model"] == "RADIAL" and camera["prior_focal"]
    assert not any("SIMPLE" in step for step in climbed)
    assert told(run, "warning") == []


def test_a_lens_that_does_not_is_given_up(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    climbed, camera = climb(run, monkeypatch, "SIMPLE_RADIAL")
    assert (camera["model"], camera["prior_focal"]) == ("SIMPLE_RADIAL", False)
    assert climbed[:5] == [
        "RADIAL extract", "RADIAL match", "RADIAL map_global", "RADIAL map_incremental",
        "SIMPLE_RADIAL extract",
    ]  # fmt: skip
    (warning,) = told(run, "warning")
    assert "HERO10 Black linear 16:9 in water" in str(warning)
    shares = [event["fraction"] for event in told(run, "progress")]
    assert shares == sorted(shares)


def test_a_lens_that_was_given_up_is_not_tried_again_by_the_next_attempt(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    climb(run, monkeypatch, "SIMPLE_RADIAL")
    climbed, camera = climb(run, monkeypatch, "SIMPLE_RADIAL")
    assert camera["model"] == "SIMPLE_RADIAL"
    assert not any("SIMPLE" not in step for step in climbed)


def test_what_neither_registers_is_told_by_the_guess(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    climbed, failure = climb(run, monkeypatch, "none")
    assert isinstance(failure, StageFailure)
    assert climbed.count("RADIAL map_global") == 1
    assert climbed.count("SIMPLE_RADIAL map_global") == len(sfm.RUNGS)
