"""A disk that is really full: a file system of two mebibytes, filled to the last block."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent_client import AgentClient, script
from tests.small_disk import memory_disk
from worker_agent.attempts import AttemptFiles
from worker_agent.checkpoint import PATH
from worker_agent.protocol import (
    AttemptRef,
    AttemptSpec,
    AttemptState,
    AttemptStatus,
    CancelRequest,
    FailureCode,
    RenewRequest,
    StatusRequest,
)
from worker_agent.reserve import RESERVE_BYTES

# Stands for the stages' interpreter: the real stage runner, with a stage that fills the disk.
FILLS = """#!{python}
import os, sys, types
from worker_agent.stages import __main__ as runner, registry
from worker_agent.stages.api import Artifacts

def main(spec, report):
    with open("ballast", "wb", buffering=0) as stream:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    stream.write(bytes(size))
            except OSError:
                pass
    if spec.config.get("blocks"):
        open("ready", "w").write("full")
        open("go").read()
    for number in range(200):
        report._interval_s = 0.0
        report.progress(number / 200, "x" * 50)
    report.warning("the disk is full")
    print("nobody reads this", "y" * 5000)
    print("nor this", file=sys.stderr, flush=True)
    if spec.config.get("fails"):
        open("more", "wb").write(bytes(1 << 20))
    return Artifacts(files=(), metrics={{"frames": 7}}, completed={{"video_count": 2}})

module = types.ModuleType("worker_agent.stages.fills")
module.main = main
sys.modules[module.__name__] = module
registry.STAGES = {{"Validation": registry.StageEntry("fills")}}
sys.exit(runner.main(sys.argv[3:]))
"""


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentClient]:
    with memory_disk(tmp_path / "disk", 2) as disk:
        client = AgentClient(disk)
        run_dir = disk / "reef" / "a-1"
        run_dir.mkdir(parents=True)
        for pipe in ("ready", "go"):
            os.mkfifo(run_dir / pipe)
        yield client
        client.end_all()


@pytest.fixture
def fills(tmp_path: Path) -> Path:
    return script(tmp_path / "fills", FILLS.format(python=sys.executable))


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as stream:
        for size in (1 << 20, 4096):
            try:
                while True:
                    stream.write(bytes(size))
            except OSError:
                continue


def files_of(spec: AttemptSpec) -> AttemptFiles:
    return AttemptFiles(Path(spec.run_dir), spec.attempt)


def events_of(spec: AttemptSpec) -> list[str]:
    text = files_of(spec).events.read_text()
    assert text.endswith("\n")
    return [json.loads(line)["kind"] for line in text.splitlines()]


def reserves(spec: AttemptSpec) -> set[str]:
    return {path.name for path in files_of(spec).directory.glob("reserve.*")}


def test_start_is_refused_before_anything_is_committed(agent: AgentClient, fills: Path) -> None:
    spec = agent.spec(fills)
    (agent.work_dir / ".cosma").mkdir()
    (agent.work_dir / ".cosma" / "epoch").write_text("1")
    ballast = agent.work_dir / "ballast"
    with ballast.open("wb") as stream:  # room for some records, not for all
        os.posix_fallocate(stream.fileno(), 0, (2 << 20) - sum(RESERVE_BYTES.values()))
    answer = agent.call("start", spec)
    assert (answer.code, answer.one["error"]) == (1, FailureCode.DISK_FULL)
    assert "free space" in answer.one["message"]
    assert reserves(spec) == set()
    reference = AttemptRef(run_dir=spec.run_dir, attempt=spec.attempt)
    state = AttemptStatus.from_dict(
        agent.call("status", StatusRequest(attempts=(reference,))).one
    ).state
    assert state is AttemptState.NEVER_STARTED
    ballast.unlink()
    assert agent.call("start", spec).one["started"]
    assert agent.wait(spec).state is AttemptState.FINISHED


def test_finished_stage_is_not_lost(agent: AgentClient, fills: Path) -> None:
    # What the stage says to its log has no room either, which must not undo its success.
    spec = agent.spec(fills)
    assert agent.call("start", spec).one["started"]
    over = agent.wait(spec)
    assert over.state is AttemptState.FINISHED
    assert over.exit is not None and over.exit.outcome is not None
    assert (over.exit.returncode, over.exit.outcome.ok) == (0, True)
    assert over.exit.outcome.metrics == {"frames": 7}
    checkpoint = json.loads((Path(spec.run_dir) / PATH).read_text())
    assert checkpoint["completed_stages"]["video_count"] == 2
    kinds = events_of(spec)
    assert [kind for kind in kinds if kind != "progress"] == ["started", "warning", "exited"]
    assert kinds.count("progress") < 200
    assert over.events_bytes == files_of(spec).events.stat().st_size
    assert reserves(spec) == set()


def test_stage_that_needs_more_space_fails_for_that_reason(agent: AgentClient, fills: Path) -> None:
    spec = agent.spec(fills, config={"fails": True})
    agent.call("start", spec)
    over = agent.wait(spec)
    assert over.exit is not None and over.exit.outcome is not None
    assert over.exit.outcome.reason is FailureCode.DISK_FULL
    assert events_of(spec)[-1] == "exited"


def test_lease_epoch_and_cancel_get_through(agent: AgentClient, fills: Path) -> None:
    spec = agent.spec(fills, config={"blocks": True}, lease_s=600.0)
    agent.call("start", spec)
    assert (Path(spec.run_dir) / "ready").read_text() == "full"
    fill(agent.work_dir / "rest")
    before = json.loads(files_of(spec).lease.read_text())["until"]
    reference = AttemptRef(run_dir=spec.run_dir, attempt=1)
    renewal = RenewRequest(epoch=12, work_dir=str(agent.work_dir), attempts=(reference,))
    assert [reply["state"] for reply in agent.call("renew", renewal).lines] == ["running"]
    assert json.loads(files_of(spec).lease.read_text())["until"] > before
    assert (agent.work_dir / ".cosma" / "epoch").read_text().strip() == "12"
    older = CancelRequest(epoch=11, run_dir=spec.run_dir, attempt=1)
    assert agent.call("cancel", older).one["error"] == "stale_epoch"
    cancel = CancelRequest(epoch=12, run_dir=spec.run_dir, attempt=1, grace_s=0.3)
    over = AttemptStatus.from_dict(agent.call("cancel", cancel).one)
    assert over.state is AttemptState.FINISHED
    assert over.exit is not None
    assert over.exit.cause == "cancelled"
    assert not list(files_of(spec).directory.glob(".*.tmp"))
