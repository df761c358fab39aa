"""What a job took of a thin work disk is given back: seen from below, by the image it lies on."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.cosma import running_stage
from tests.rehearsal import Rehearsal, rehearsal
from tests.small_disk import MIB, DiskImage, disk_image

CLIP_BYTES = 24 * MIB
HAS_MIB = 160  # what such a host has on its work disk anyway


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[tuple[Rehearsal, DiskImage]]:
    place = tmp_path / "hosts" / "host-1" / "work"
    disk = {"min_free_gib": 0, "fstrim": "auto" if os.geteuid() == 0 else "sudo"}
    with (
        disk_image(tmp_path / "disk.img", place, 512) as image,
        rehearsal(tmp_path, 1, disk=disk) as made,
    ):
        yield made, image


def query(farm: Rehearsal, text: str) -> list[sqlite3.Row]:
    with sqlite3.connect(f"file:{farm.cosma.database}?mode=ro", uri=True) as reader:
        reader.row_factory = sqlite3.Row
        return reader.execute(text).fetchall()


def reached(stage: str, trims: int) -> Callable[[sqlite3.Connection], bool]:
    def seen(reader: sqlite3.Connection) -> bool:
        (count,) = reader.execute("SELECT count(*) FROM trims").fetchone()
        return bool(count >= trims) and running_stage(stage)(reader)

    return seen


def about(measured: int, told: int) -> bool:
    return abs(measured - told) <= 0.1 * measured


def test_what_a_job_took_is_given_back_and_told(
    farm: tuple[Rehearsal, DiskImage], tmp_path: Path
) -> None:
    there, image = farm
    there.cosma.variables["COSMA_TRIM_WINDOW_S"] = "0"
    plan = tmp_path / "plan.yaml"
    plan.write_text("train: {cuda: {cap: 1000}}\n")
    (name,) = there.ingest(1, clip_bytes=CLIP_BYTES, options=("--config", str(plan)))
    assert there.cosma.run("worker", "probe", "host-1").returncode == 0  # brings the agent
    with (image.place / "environment").open("wb") as stream:
        for _ in range(HAS_MIB):
            stream.write(os.urandom(MIB))
    image.allocated()
    image.trim()
    before = image.allocated()

    there.hold(True, "FrameExtraction", "MetadataExtraction")
    dispatcher = there.cosma.start("dispatch", "--once")
    there.cosma.wait_until("its frames are made", running_stage("FrameExtraction"))
    with_video = image.allocated()
    assert with_video - before > 1.9 * CLIP_BYTES
    there.hold(True, "MetadataExtraction")
    there.cosma.wait_until("its video is gone", reached("MetadataExtraction", 1))
    without = image.allocated()
    there.hold(False)
    _, errors = dispatcher.communicate(timeout=120)
    assert dispatcher.returncode == 0, errors
    after = image.allocated()

    trims = query(there, "SELECT * FROM trims ORDER BY id")
    freed = [row["freed_bytes"] for row in trims]
    assert about(with_video - without, freed[0]), (with_video - without, freed)
    assert about(without - after, sum(freed[1:])), (without - after, freed)
    assert abs(after - before) <= 0.02 * before, (before, after)
    for row in trims:
        assert (row["method"], row["mount"]) != ("", "")
        assert row["trimmed_bytes"] >= 0.9 * row["freed_bytes"], "the kernel told the device less"
        assert row["free_before"] > 0 and row["free_after"] > 0
    # The same in the events, and for each kind that was removed.
    events = query(there, "SELECT * FROM events WHERE kind = 'disk_trimmed'")
    assert len(events) == len(trims)
    removals = {row["what"]: row for row in query(there, "SELECT * FROM removals")}
    assert set(removals) == {"source_videos", "frames", "features", "training", "results"}
    assert all(row["trim"] is not None for row in removals.values())
    assert removals["frames"]["free_after"] - removals["frames"]["free_before"] > 0.9 * CLIP_BYTES
    (job,) = there.cosma.jobs().values()
    assert job["state"] == "done"
    run_dir = image.place / "reef" / name
    left = subprocess.run(["ls", run_dir], capture_output=True, text=True, check=True).stdout
    assert {"attempts", "spec.json"} >= set(left.split()) - {"lock", "input"}, left
