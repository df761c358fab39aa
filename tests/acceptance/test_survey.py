"""From video to the cross-AUV scene, with one bad clip among the good ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dispatcher.embedded import EmbeddedHosts
from tests.acceptance.cosma import Cosma


def test_a_survey_becomes_one_scene_and_a_bad_clip_harms_nobody(
    cosma: Cosma, farm: EmbeddedHosts, footage: Path
) -> None:
    survey = cosma.directory / "footage"
    for clip in footage.rglob("*.MP4"):
        target = survey / clip.relative_to(footage)
        target.parent.mkdir(parents=True)
        target.symlink_to(clip)
    logged = next((survey / "auv-a").rglob("a1/*.MP4"))
    rows = "".join(f"{t},{7 + t / 10}\n" for t in range(61))
    logged.with_suffix(".nav.csv").write_text(f"t_s,depth_m\n{rows}")
    bad = survey / "auv-a" / "C3441325000001" / "a3" / "GX010103.MP4"
    bad.parent.mkdir()
    bad.touch()

    ingested = cosma.ingest(survey, "Reef North")
    assert ingested.returncode == 3, ingested.stderr  # partly: one of the five is held
    dispatched = cosma.run("dispatch", "--once")
    assert dispatched.returncode == 3, dispatched.stderr

    jobs = cosma.jobs()
    held = jobs.pop("reef-north-auv-a-a3")
    assert (held["state"], held["reason"]) == ("held", "input_empty")
    assert {row["state"] for row in jobs.values()} == {"done"}, jobs

    summary = cosma.json("summary", "Reef North")
    done = [row for row in summary["segments"] if row["state"] == "done"]
    assert len(done) == 4
    for row in done:
        assert row["registered"] >= 0.9 * row["frames"]
        assert row["psnr"] >= 18.0
        assert Path(cosma.directory, row["ply"]).stat().st_size > 1000
    levels = sorted(row["level"] for row in summary["stitches"])
    assert levels == ["cross_auv", "per_auv", "per_auv"]
    assert {row["state"] for row in summary["stitches"]} == {"done"}

    left = [path for host in farm.hosts for path in host.work_dir.rglob("input/*")]
    assert left == []
    kept = Path(cosma.directory, "cosma-artifacts")
    (manifest,) = kept.glob("*/reef-north-auv-a-a1/manifest.json")
    for row in json.loads(manifest.read_text())["frames"]:  # the vehicle's log went along
        assert row["depth_m"] == pytest.approx(7 + row["time_s"] / 10)
    cross = cosma.json("stitch", "show", "reef-north-stitch-cross-v1")
    assert len(cross["report"]["members"]) == 2
    checkpoint = next(Path(cosma.directory, "cosma-artifacts").rglob(".checkpoint.json"))
    assert json.loads(checkpoint.read_text())["completed_stages"]


def test_repeating_an_ingest_makes_nothing_twice(cosma: Cosma, footage: Path) -> None:
    assert cosma.ingest(footage, "twice").returncode == 0
    assert cosma.ingest(footage, "twice").returncode == 0
    assert len(cosma.jobs()) == 4
