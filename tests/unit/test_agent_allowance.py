"""Cores and RAM under control groups of both versions, and the RAM of an attempt."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker_agent import allowance
from worker_agent.processes import COOKIE

MIB = 1 << 20


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_groups_it_is_the_machine(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    total, free = allowance.memory_mib(own=absent, root=absent)
    assert 0 < free <= total
    assert allowance.cores(own=absent, root=absent) == len(os.sched_getaffinity(0))


def test_a_limit_of_a_group_above_counts_and_the_page_cache_is_free(tmp_path: Path) -> None:
    own, root = tmp_path / "own", tmp_path / "cgroup"
    own.write_text("0::/user.slice/session\n")
    write(root / "user.slice/memory.max", f"{64 * MIB}\n")
    write(root / "user.slice/memory.current", f"{60 * MIB}\n")
    stat = f"anon {20 * MIB}\ninactive_file {30 * MIB}\nactive_file {9 * MIB}\nslab 5\n"
    write(root / "user.slice/memory.stat", stat)
    write(root / "user.slice/session/memory.max", "max\n")
    assert allowance.memory_mib(own=own, root=root) == (64, 43)


def test_the_first_version_of_groups(tmp_path: Path) -> None:
    own, root = tmp_path / "own", tmp_path / "cgroup"
    own.write_text("7:cpu,cpuacct:/x\n4:memory:/a b\n1:name=systemd:/y\n0::/\n")
    write(root / "memory/a b/memory.limit_in_bytes", f"{32 * MIB}\n")
    write(root / "memory/a b/memory.usage_in_bytes", f"{32 * MIB}\n")
    write(root / "memory/a b/memory.stat", f"total_inactive_file {MIB}\ninactive_file 7\n")
    write(root / "memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert allowance.memory_mib(own=own, root=root) == (32, 1)
    write(root / "cpu/x/cpu.cfs_quota_us", "50000\n")
    write(root / "cpu/x/cpu.cfs_period_us", "100000\n")
    assert allowance.cores(own=own, root=root) == 1  # half a core still runs one stage


@pytest.mark.parametrize(("quota", "expected"), [("150000 100000", 1), ("max 100000", None)])
def test_a_cpu_quota(tmp_path: Path, quota: str, expected: int | None) -> None:
    own, root = tmp_path / "own", tmp_path / "cgroup"
    own.write_text("0::/box\n")
    write(root / "box/cpu.max", quota + "\n")
    assert allowance.cores(own=own, root=root) == (expected or len(os.sched_getaffinity(0)))


def test_the_ram_of_an_attempt_is_that_of_its_processes() -> None:
    code = "held = bytearray(60 << 20); print('held', flush=True); input()"
    environment = {**os.environ, COOKIE: "/w/reef/job-7#3"}
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None and holder.stdin is not None
        holder.stdout.readline()
        found = {(m.run_dir, m.attempt): m.used_mib for m in allowance.ram_of_attempts()}
        holder.stdin.close()
    assert 60 <= found["/w/reef/job-7", 3] < 100
