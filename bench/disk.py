"""What a host's work disk is used for and given back: python -m bench.disk

One job on a sparse image of a disk, trimmed through a loop device: what the image takes before and
after the job, and the bytes that the books say were freed against those it gave back. Then ten jobs
on a disk that holds about two of their videos with their frames: how many get done, and how many
failures (a full disk is one) they meet. Then a job whose host's disk others fill while a stage
works, for several stages: whether it moves and ends done, and what is damaged or half written.
Stages are played short; all else is as it is on a host.
Mounts file systems: needs root or sudo.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from bench.results import Result, parser, show
from tests.disk_drills import damaged, failures, fill_during, give_back, ingest
from tests.rehearsal import rehearsal
from tests.small_disk import MIB, disk_image, memory_disk

JOBS = 10
GIVEN_CLIP = 48 * MIB
CLIP = 10 * MIB
DISK_MIB = 56
# Stage, bytes that are left while it works: the frames after Validation do not fit, nor do results.
FULL = (("Validation", 1_000_000), ("ColmapReconstruction", 0), ("Training", 0))
SLOTS = {"extract": 3, "sfm": 2, "train": 2, "stitch": 1}


def given_back(base: Path) -> list[Result]:
    fstrim = "auto" if os.geteuid() == 0 else "sudo"
    disk = {"min_free_gib": 0, "fstrim": fstrim}
    place = base / "hosts" / "host-1" / "work"
    with disk_image(base / "disk.img", place, 768) as image, rehearsal(base, 1, disk=disk) as farm:
        taken = give_back(farm, image, GIVEN_CLIP)
    off = max(abs(told / seen - 1.0) for told, seen in taken.told_and_seen())
    kernel = sum(row["trimmed_bytes"] for row in taken.trims)
    left = abs(taken.after / taken.before - 1.0)
    mib = (taken.with_video - taken.before) / MIB
    seen = taken.with_video - taken.after
    return [
        Result(name="disk_taken_by_job", value=mib, unit="MiB", better="lower"),
        Result(name="disk_left_after_job", value=left, unit="share", better="lower", target=0.02),
        Result(name="freed_told_off_image", value=off, unit="share", better="lower", target=0.1),
        Result(name="kernel_trimmed_over_image", value=kernel / seen, unit="x", better="lower"),
    ]


def on_a_small_disk(base: Path) -> list[Result]:
    disk = {"min_free_gib": 0, "fstrim": "off"}
    place = base / "hosts" / "host-1" / "work"
    with (
        memory_disk(place, DISK_MIB),
        rehearsal(base, 1, disk=disk, max_parallel=SLOTS) as farm,
    ):
        names = ingest(farm, JOBS, "reef", CLIP)
        farm.cosma.run("dispatch", "--once")
        jobs = farm.cosma.jobs()
        done = sum(jobs[name]["state"] == "done" for name in names)
        failed = failures(farm)
    for line in failed:
        print(line, file=sys.stderr)
    over = JOBS * CLIP / (DISK_MIB * MIB)
    return [
        Result(name="videos_over_disk", value=over, unit="x", better="higher"),
        Result(name="jobs_done", value=done, unit="jobs", better="higher", target=JOBS),
        Result(name="failures", value=len(failed), unit="", better="lower", target=0),
    ]


def moved_from_full_disks(base: Path) -> list[Result]:
    disk = {"min_free_gib": 0, "fstrim": "off"}
    moved, broken = 0, []
    for number, (stage, leave) in enumerate(FULL):
        at = base / str(number)
        at.mkdir()
        with (
            memory_disk(at / "hosts" / "host-1" / "work", DISK_MIB),
            memory_disk(at / "hosts" / "host-2" / "work", DISK_MIB),
            rehearsal(at, 2, disk=disk) as farm,
        ):
            full, ended = fill_during(farm, stage, leave)
            moved += full != ended
            broken += damaged(farm)
    return [
        Result(
            name="moved_from_full_disk", value=moved, unit="jobs", better="higher", target=len(FULL)
        ),
        Result(name="damaged_by_full_disk", value=len(broken), unit="", better="lower", target=0),
    ]


def main() -> int:
    options = parser(__doc__).parse_args()
    results = []
    for measure in (given_back, on_a_small_disk, moved_from_full_disks):
        with tempfile.TemporaryDirectory(prefix="cosma-disk-") as base:
            results += measure(Path(base))
    return show("disk", results, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
