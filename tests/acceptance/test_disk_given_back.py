"""What a job took of a thin work disk is given back: seen from below, by the image it lies on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disk_drills import give_back, query
from tests.rehearsal import Rehearsal, rehearsal
from tests.small_disk import MIB, DiskImage, disk_image

CLIP_BYTES = 24 * MIB


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[tuple[Rehearsal, DiskImage]]:
    place = tmp_path / "hosts" / "host-1" / "work"
    disk = {"min_free_gib": 0, "fstrim": "auto" if os.geteuid() == 0 else "sudo"}
    with (
        disk_image(tmp_path / "disk.img", place, 512) as image,
        rehearsal(tmp_path, 1, disk=disk) as made,
    ):
        yield made, image


def test_what_a_job_took_is_given_back_and_told(farm: tuple[Rehearsal, DiskImage]) -> None:
    there, image = farm
    taken = give_back(there, image, CLIP_BYTES)
    assert taken.with_video - taken.before > 1.9 * CLIP_BYTES
    for told, seen in taken.told_and_seen():
        assert abs(told - seen) <= 0.1 * seen, taken
    assert abs(taken.after - taken.before) <= 0.02 * taken.before, taken
    for row in taken.trims:
        assert (row["method"], row["mount"]) != ("", "")
        assert row["trimmed_bytes"] >= 0.9 * row["freed_bytes"], "the kernel told the device less"
        assert row["free_before"] > 0 and row["free_after"] > 0
    # The same in the events, and for each kind that was removed.
    assert len(query(there, "SELECT 1 FROM events WHERE kind = 'disk_trimmed'")) == len(taken.trims)
    removals = {row["what"]: row for row in query(there, "SELECT * FROM removals")}
    assert set(removals) == {"source_videos", "frames", "features", "training", "results"}
    assert all(row["trim"] is not None for row in removals.values())
    assert removals["frames"]["free_after"] - removals["frames"]["free_before"] > 0.9 * CLIP_BYTES
    ((name, job),) = there.cosma.jobs().items()
    assert job["state"] == "done"
    left = {path.name for path in (image.place / "reef" / name).iterdir()}
    assert left <= {"attempts", "spec.json", "lock", "input"}
