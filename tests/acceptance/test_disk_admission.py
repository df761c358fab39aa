"""A small work disk: what does not fit on it at once is done one after the other, what never fits
is refused by the byte."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disk_drills import failures, ingest
from tests.rehearsal import Rehearsal, rehearsal
from tests.small_disk import MIB, memory_disk, resize

JOBS = 4
CLIP_BYTES = 10 * MIB
DISK_MIB = 34  # all videos are 40, and their frames as much
SLOTS = {"extract": 3, "sfm": 2, "train": 2, "stitch": 1}


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Rehearsal]:
    place = tmp_path / "hosts" / "host-1" / "work"
    disk = {"min_free_gib": 0, "fstrim": "off"}
    with (
        memory_disk(place, DISK_MIB),
        rehearsal(tmp_path, 1, disk=disk, max_parallel=SLOTS) as made,
    ):
        made.cosma.variables["COSMA_PROBE_S"] = "0.5"
        yield made


def missing(farm: Rehearsal, job: str) -> int:
    told = farm.cosma.run("why", job).stdout
    found = re.search(r"(\d+) bytes are missing", told)
    assert found is not None, told
    return int(found[1])


def test_jobs_that_do_not_fit_together_are_done_without_a_full_disk(farm: Rehearsal) -> None:
    ingest(farm, JOBS, "reef", CLIP_BYTES)
    done = farm.cosma.run("dispatch", "--once")
    assert done.returncode == 0, done.stderr
    jobs = farm.cosma.jobs().values()
    assert {job["state"] for job in jobs} == {"done"} and len(jobs) == JOBS + 1  # and a stitch
    assert failures(farm) == []
    # All that they brought and made is gone again.
    place = farm.hosts.hosts[0].work_dir
    left = [path for path in place.rglob("*") if path.is_file() and path.stat().st_size > MIB]
    assert left == []


def test_a_job_that_never_fits_is_refused_by_the_byte(farm: Rehearsal) -> None:
    ingest(farm, 1, "wreck", 2 * DISK_MIB * MIB)
    (name,) = farm.cosma.jobs()
    place = farm.hosts.hosts[0].work_dir
    assert farm.cosma.run("dispatch", "--once").returncode == 3
    size = DISK_MIB * MIB + missing(farm, name) - 64 * MIB
    resize(place, size)
    assert farm.cosma.run("job", "retry", name).returncode == 0
    refused = farm.cosma.run("dispatch", "--once")
    assert refused.returncode == 3 and "bytes are missing" in refused.stderr
    assert (job := farm.cosma.jobs()[name])["state"] == "held" and job["reason"] == "disk_low"
    assert abs(missing(farm, name) - 64 * MIB) < MIB
    # What it said is enough, with a little for what the host's own records took meanwhile.
    resize(place, size + missing(farm, name) + MIB)
    assert farm.cosma.run("job", "retry", name).returncode == 0
    done = farm.cosma.run("dispatch", "--once")
    assert done.returncode == 0, done.stderr
