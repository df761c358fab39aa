"""What an attempt used: the whole tree of its processes, and the most its directory held."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker_agent import processes
from worker_agent.usage import UsageWatch, disk_bytes

MIB = 1 << 20
# A parent and a child that each hold 64 MiB of their own.
TREE = """\
import os, sys
os.fork()
block = os.urandom(1 << 20) * 64
os.write(1, b"ready\\n")  # at once: two write to this pipe
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


def test_what_lies_below_is_found_from_above_also_from_a_thread() -> None:
    forks = (
        "import subprocess, sys, threading\n"
        "code = 'import sys; print(1, flush=True); sys.stdin.read()'\n"
        "run = lambda: subprocess.run([sys.executable, '-c', code])\n"
        "threading.Thread(target=run).start()\n"
    )
    root = subprocess.Popen(
        [sys.executable, "-c", forks], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert root.stdout is not None and root.stdout.readline() == b"1\n"
    found = processes.tree(root.pid)
    assert found[0] == root.pid and len(found) == 2
    assert os.getpid() not in found and set(found) <= set(processes.tree(os.getpid()))
    root.communicate()
    assert processes.tree(root.pid) == []
