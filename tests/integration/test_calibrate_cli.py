"""`cosma calibrate`: from a finished segment's report to settings that ingest takes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from dispatcher.cli.calibrate import calibrate
from dispatcher.errors import CosmaError
from dispatcher.settings import PipelineConfig
from dispatcher.store.rows import ArtifactRow
from dispatcher.store.sqlite import SqliteStore
from tests.contract.store_builders import JOB, fill
from worker_agent.stages.manifest import at_source_size, camera_guess, camera_of

CAMERA = {"model": "RADIAL", "params": [1243.6, 960.0, 540.0, 0.362, 0.248], "width": 1920,
          "height": 1080}  # fmt: skip
GOOD = {"registered": 43, "frames": 43, "registered_share": 1.0, "reprojection_px": 0.55}


def database(tmp_path: Path, report: Any, lens: Any = None) -> Path:
    """With JOB, and its SfM report where it was collected; None: it was not."""

    async def make() -> None:
        store = await SqliteStore.open(tmp_path / "cosma.db")
        await fill(store)
        if report is not None:
            path = tmp_path / "sfm.json"
            path.write_text(json.dumps(report))
            row = ArtifactRow(
                job=JOB.id, kind="sfm_report", path="output/sfm.json", bytes=1, sha256="a",
                local_path=str(path),
            )  # fmt: skip
            await store.add_artifacts(JOB.id, [row])
        if lens is not None:
            path = tmp_path / "manifest.json"
            path.write_text(json.dumps({"camera": {"lens": lens}}))
            row = ArtifactRow(
                job=JOB.id, kind="manifest", path="output/manifest.json", bytes=1, sha256="b",
                local_path=str(path),
            )  # fmt: skip
            await store.add_artifacts(JOB.id, [row])
        await store.close()

    asyncio.run(make())
    return tmp_path / "cosma.db"


def test_a_profile_is_settings_for_the_next_ingest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    db = database(tmp_path, {**GOOD, "camera": CAMERA})
    out = tmp_path / "hero10.yaml"
    calibrate(JOB.id, out, db)
    sfm = PipelineConfig.load(out, {}).sfm
    assert sfm.camera_model == "RADIAL"
    assert list(sfm.camera_params or ()) == CAMERA["params"]
    assert "43 of 43 frames, 0.55 px" in out.read_text()
    calibrate(JOB.id, None, db)
    assert capsys.readouterr().out == out.read_text()
    calibrate(JOB.id, None, db, True)
    assert json.loads(capsys.readouterr().out)["sfm"]["camera_params"] == CAMERA["params"]


def test_a_camera_that_says_what_it_is_gets_a_profile_beside_others(tmp_path: Path) -> None:
    lens = {"camera": "HERO10 Black", "mode": "linear", "stabilised": False, "zoomed": False}
    db = database(tmp_path, {**GOOD, "camera": CAMERA}, lens)
    out = tmp_path / "lenses.yaml"
    other = {**lens, "mode": "wide", "width": 1920, "height": 1080, "underwater": True}
    other |= {"camera_model": "SIMPLE_PINHOLE", "camera_params": [1.0, 2.0, 3.0]}
    del other["zoomed"]
    out.write_text(json.dumps({"frames": {"fps": 3}, "sfm": {"overlap": 7, "profiles": [other]}}))
    for _ in range(2):  # again takes its own place
        calibrate(JOB.id, out, db)
        config = PipelineConfig.load(out, {})
        assert (config.frames.fps, config.sfm.overlap, config.sfm.camera_model) == (3, 7, "auto")
        wide, linear = config.as_dict()["sfm"]["profiles"]
    assert wide == other
    clips = [{"device": None, "settings": {"MINF": "HERO10 Black", "VFOV": "L"}}]
    camera, _ = camera_of(config.as_dict()["sfm"], clips, (1920, 1080), (1920, 1080))
    assert camera["source"] == "calibration" and camera["params"] == CAMERA["params"]
    assert (linear["width"], linear["height"]) == (1920, 1080)


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (None, "its SfM report is not here"),
        ({**GOOD, "camera": CAMERA, "registered_share": 0.5}, "50 % of its frames"),
        ({**GOOD, "camera": CAMERA, "reprojection_px": 3.0}, "3.00 px"),
        ({**GOOD, "camera": CAMERA, "focal_uncertainty": 0.02}, "to 2.0 %"),
        ({**GOOD, "camera": CAMERA, "focal_uncertainty": None}, "not at all"),
        (GOOD, "kept no camera"),
        ([], "kept no camera"),
    ],
)
def test_what_is_no_calibration_is_refused(report: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(CosmaError) as caught:
        calibrate(JOB.id, None, database(tmp_path, report))
    assert words in caught.value.line and caught.value.fix


def test_a_camera_goes_to_the_source_size_and_back() -> None:
    frame = camera_guess("RADIAL", CAMERA["params"], (1920, 1080), (960, 540))
    assert frame["params"][0] == pytest.approx(621.8)
    sizes = {**frame, "source_width": 1920, "source_height": 1080}
    assert at_source_size("RADIAL", frame["params"], sizes) == pytest.approx(CAMERA["params"])
