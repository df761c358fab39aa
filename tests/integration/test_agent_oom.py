"""A stage that the kernel kills for its memory, in a real control group with a real limit."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent_client import AgentClient, script
from worker_agent.protocol import FailureCode

_LIMIT = 64 << 20


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of 64 MiB. Skips where this user may not make one."""
    for root, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        path = root / f"cosma-test-{os.getpid()}"
        try:
            path.mkdir()
        except OSError:
            continue
        try:
            (path / limit).write_text(str(_LIMIT))
        except OSError:
            path.rmdir()
            continue
        yield path
        end = time.monotonic() + 60
        while (path / "cgroup.procs").read_text().strip() and time.monotonic() < end:
            time.sleep(0.05)
        path.rmdir()
        return
    pytest.skip("control groups cannot be made here")


def test_kill_by_the_kernel_is_told_from_any_other(group: Path, tmp_path: Path) -> None:
    stage = script(
        tmp_path / "eats",
        f"#!{sys.executable}\nimport os\n"
        f"open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
        "hoard = []\nwhile True:\n    hoard.append(bytearray(b'x' * (1 << 20)))\n"
        f"    if len(hoard) > 512:\n        raise SystemExit('no limit')\n",
    )
    agent = AgentClient(tmp_path / "work")
    spec = agent.spec(stage)
    agent.call("start", spec)
    over = agent.wait(spec)
    assert over.exit is not None
    assert (over.exit.cause, over.exit.signal) == ("oom_killed", 9)
    assert over.exit.outcome is not None
    assert over.exit.outcome.reason is FailureCode.OUT_OF_MEMORY
    assert over.exit.outcome.evidence["oom_kills"]["host"] >= 1
