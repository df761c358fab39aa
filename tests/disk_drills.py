"""What disks of hosts are put through, for tests and for bench/disk.py."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dispatcher.executors.transfer import file_sha256
from tests.acceptance.cosma import running_stage
from tests.rehearsal import Rehearsal
from tests.small_disk import MIB, DiskImage

HAS_MIB = 160  # what a host has on its work disk anyway


def query(farm: Rehearsal, text: str) -> list[sqlite3.Row]:
    with sqlite3.connect(f"file:{farm.cosma.database}?mode=ro", uri=True) as reader:
        reader.row_factory = sqlite3.Row
        return reader.execute(text).fetchall()


def ingest(farm: Rehearsal, jobs: int, acquisition: str, clip_bytes: int) -> list[str]:
    """With a plan that asks for little disk beside the frames."""
    plan = farm.cosma.directory / "plan.yaml"
    plan.write_text("train: {cuda: {cap: 1000}}\n")
    return farm.ingest(jobs, acquisition, clip_bytes, options=("--config", str(plan)))


@dataclass(frozen=True, slots=True)
class Taken:
    """Bytes that the image took: before the job, with its video and frames, without the video,
    and after the job; and what was told of each trim."""

    before: int
    with_video: int
    without: int
    after: int
    trims: list[sqlite3.Row]

    def told_and_seen(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Freed by the books and by the image: with the video, and with all the rest."""
        video, *rest = (row["freed_bytes"] for row in self.trims)
        return (video, self.with_video - self.without), (sum(rest), self.without - self.after)


def give_back(farm: Rehearsal, image: DiskImage, clip_bytes: int) -> Taken:
    """One job on the image, looked at from below while its stages are held."""
    farm.cosma.variables["COSMA_TRIM_WINDOW_S"] = "0"
    ingest(farm, 1, "reef", clip_bytes)
    assert farm.cosma.run("worker", "probe", "host-1").returncode == 0  # brings the agent
    with (image.place / "environment").open("wb") as stream:
        for _ in range(HAS_MIB):
            stream.write(os.urandom(MIB))
    image.allocated()
    image.trim()
    before = image.allocated()

    farm.hold(True, "FrameExtraction", "MetadataExtraction")
    dispatcher = farm.cosma.start("dispatch", "--once")
    farm.cosma.wait_until("its frames are made", running_stage("FrameExtraction"))
    with_video = image.allocated()
    farm.hold(True, "MetadataExtraction")
    farm.cosma.wait_until("its video is gone", _reached("MetadataExtraction", 1))
    without = image.allocated()
    farm.hold(False)
    _, errors = dispatcher.communicate(timeout=300)
    assert dispatcher.returncode == 0, errors
    after = image.allocated()
    return Taken(before, with_video, without, after, query(farm, "SELECT * FROM trims ORDER BY id"))


def _reached(stage: str, trims: int) -> Callable[[sqlite3.Connection], bool]:
    def seen(reader: sqlite3.Connection) -> bool:
        (count,) = reader.execute("SELECT count(*) FROM trims").fetchone()
        return bool(count >= trims) and running_stage(stage)(reader)

    return seen


def fill_during(farm: Rehearsal, stage: str, leave: int = 0) -> tuple[str, str]:
    """Others fill the work disk of a job's host but for `leave` bytes while `stage` works: (that
    host, the one on which the job ends). The farm has one job and two hosts."""
    ingest(farm, 1, "reef", 2 * MIB)
    farm.hold(True, stage)
    dispatcher = farm.cosma.start("dispatch", "--once")
    farm.cosma.wait_until(f"{stage} works", running_stage(stage))
    ((full,),) = query(farm, "SELECT host FROM jobs")
    place = next(host.work_dir for host in farm.hosts.hosts if host.name == full)
    fill(place / "of-others", leave)
    farm.hold(False)
    _, errors = dispatcher.communicate(timeout=300)
    assert dispatcher.returncode == 0, errors
    ((state, ended),) = query(farm, "SELECT state, host FROM jobs")
    assert state == "done"
    return full, ended


def fill(file: Path, leave: int) -> None:
    """To the last byte of its file system, then so many less."""
    with file.open("wb", buffering=0) as stream:
        for size in (MIB, 4096):
            with contextlib.suppress(OSError):
                while True:
                    stream.write(bytes(size))
        stream.truncate(stream.tell() - leave)


def damaged(farm: Rehearsal) -> list[str]:
    """Results that are not what the books say; files that were left half written on a host."""
    found = [
        row["local_path"]
        for row in query(farm, "SELECT * FROM artifacts WHERE local_path NOT NULL")
        if file_sha256(Path(row["local_path"])) != row["sha256"]
    ]
    places = [host.work_dir for host in farm.hosts.hosts]
    return [*found, *(str(part) for place in places for part in place.rglob("*.part"))]


def failures(farm: Rehearsal) -> list[str]:
    """Of attempts and transfers, whatever for."""
    found = query(farm, "SELECT * FROM events WHERE kind IN ('attempt_failed', 'transfer_failed')")
    return [row["payload"] for row in found]
