"""What an attempt used: the whole tree of its processes, and the most its directory held."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker_agent.processes import ProcessStat
from worker_agent.usage import UsageWatch, disk_bytes, resident_pages

MIB = 1 << 20
# A parent and a child that each hold 64 MiB of their own.
TREE = """\
import os, sys
os.fork()
block = os.urandom(1 << 20) * 64
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def process_tree() -> Iterator[int]:
    root = subprocess.Popen(
        [sys.executable, "-c", TREE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert root.stdin is not None and root.stdout is not None
    assert [root.stdout.readline() for _ in range(2)] == [b"ready\n"] * 2
    yield root.pid
    root.communicate()


def test_memory_is_that_of_all_processes_at_once_and_stays_known(tmp_path: Path) -> None:
    with process_tree() as pid:
        watch = UsageWatch(tmp_path, pid)
        watch.tick(0.0)
    watch.tick(1000.0)  # nothing is left
    peak_mib, grown = watch.finish()
    assert 128 < peak_mib < 400
    assert grown == 0


def test_disk_counts_from_the_start_and_what_was_removed_again(tmp_path: Path) -> None:
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "clip").write_bytes(b"\1" * 2 * MIB)
    watch = UsageWatch(tmp_path, 0)
    (tmp_path / "sfm" / "work").mkdir(parents=True)
    scratch = tmp_path / "sfm" / "work" / "database"
    scratch.write_bytes(b"\1" * 3 * MIB)
    watch.tick(0.0)
    scratch.write_bytes(b"\1" * 8 * MIB)
    watch.tick(1.0)
    scratch.unlink()
    assert 3 * MIB <= watch.finish()[1] < 4 * MIB, "looked at every few seconds only"
    assert watch.finish()[1] == watch.finish()[1]


def test_links_lead_nowhere_and_a_directory_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\1" * MIB)
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "loop").symlink_to(tmp_path)
    assert disk_bytes(inner) <= 4096, "a link itself"
    assert disk_bytes(tmp_path / "nowhere") == 0


def test_only_what_lies_below_the_stage_counts() -> None:
    def process(parent: int, pages: int) -> ProcessStat:
        return ProcessStat("S", parent, 0, pages)

    stats = {
        1: process(0, 1000), 10: process(1, 100), 11: process(10, 20), 12: process(11, 3),
        20: process(1, 5000),
    }  # fmt: skip
    assert resident_pages(stats, 10) == 123
    assert resident_pages(stats, 99) == 0
