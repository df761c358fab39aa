"""The supervisor killed alone, at any moment: no result lost, no process left."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent_client import AgentClient, script
from tests.integration.test_agent_processes import (
    alive,
    cancel,
    files_of,
    go,
    ready,
    start,
    status,
)
from worker_agent.protocol import AttemptSpec, AttemptState

# The real stage runner, with a stage that waits to be told to go on.
RUNNER = """#!{python}
import os, sys, types
from worker_agent.stages import __main__ as runner, registry
from worker_agent.stages.api import Artifacts

def main(spec, report):
    sum(range(2_000_000))
    open("ready", "w").write(str(os.getpid()))
    open("go").read()
    return Artifacts(files=(), metrics={{"frames": 7}})

module = types.ModuleType("worker_agent.stages.waits")
module.main = main
sys.modules[module.__name__] = module
registry.STAGES = {{"Validation": registry.StageEntry("waits")}}
sys.exit(runner.main(sys.argv[3:]))
"""

DEAF = "#!/bin/sh\ntrap '' TERM\necho $$ >> pids\nread x < never\n"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentClient]:
    client = AgentClient(tmp_path / "work")
    run_dir = client.work_dir / "reef" / "a-1"
    run_dir.mkdir(parents=True)
    for pipe in ("ready", "go", "never"):
        os.mkfifo(run_dir / pipe)
    yield client
    client.end_all()


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    return script(tmp_path / "runner", RUNNER.format(python=sys.executable))


@pytest.fixture
def breeder(tmp_path: Path) -> Path:
    """A stage with children in its group, in a session of their own, and without environment."""
    deaf = script(tmp_path / "deaf", DEAF)
    return script(
        tmp_path / "breeds",
        f"#!/bin/sh\ntrap '' TERM\n{deaf} &\nsetsid {deaf} &\n"
        f"env -i PATH=\"$PATH\" setsid sh -c '{deaf} & exit' &\n"
        'while [ "$(wc -l < pids 2>/dev/null || echo 0)" -lt 3 ]; do sleep 0.02; done\n'
        "echo $$ $(cat pids) > ready\nread x < never\n",
    )


def kill_supervisor(spec: AttemptSpec, number: signal.Signals = signal.SIGKILL) -> int:
    pid = int(json.loads(files_of(spec).processes.read_text())["supervisor"])
    os.kill(pid, number)
    return pid


def test_harvested_record_is_complete(agent: AgentClient, runner: Path) -> None:
    spec = agent.spec(runner)
    start(agent, spec)
    ready(spec)
    kill_supervisor(spec)
    go(spec)
    over = agent.wait(spec)
    assert over.state is AttemptState.FINISHED
    record = over.exit
    assert record is not None and record.outcome is not None
    assert (record.cause, record.returncode, record.signal) == ("exited", 0, None)
    assert (record.outcome.ok, record.outcome.metrics) == (True, {"frames": 7})
    assert record.started_at <= record.ended_at
    assert record.wall_s > 0
    assert record.cpu_s > 0
    assert record.peak_rss_mib > 5
    assert record.events_bytes == files_of(spec).events.stat().st_size
    assert record.log_bytes == files_of(spec).log.stat().st_size


@pytest.mark.parametrize(("changes", "cause"), [({"lease_s": 0.3}, "lease_expired"),
                                                ({"timeout_s": 0.3}, "timeout")])  # fmt: skip
def test_stage_ends_itself_and_says_why(
    agent: AgentClient, runner: Path, changes: dict[str, float], cause: str
) -> None:
    # Killed before the supervisor's own tick could see the limit pass.
    spec = agent.spec(runner, **changes)
    start(agent, spec)
    kill_supervisor(spec)
    over = agent.wait(spec)
    assert over.exit is not None
    assert (over.exit.cause, over.exit.signal) == (cause, signal.SIGKILL)


def test_cancel_does_the_supervisors_work(agent: AgentClient, breeder: Path) -> None:
    spec = agent.spec(breeder)
    start(agent, spec)
    pids = ready(spec)
    kill_supervisor(spec)
    assert len(alive(pids)) == 4
    assert status(agent, spec).state is AttemptState.RUNNING
    over = cancel(agent, spec)
    assert alive(pids) == []
    assert over.state is AttemptState.FINISHED
    assert over.exit is not None
    assert (over.exit.cause, over.exit.outcome) == ("cancelled", None)
    assert cancel(agent, spec).exit == over.exit
    assert not list(files_of(spec).directory.glob("reserve.*"))


def test_cancel_finds_what_outlived_both(agent: AgentClient, breeder: Path) -> None:
    spec = agent.spec(breeder)
    start(agent, spec)
    pids = ready(spec)
    kill_supervisor(spec)
    os.kill(pids[0], signal.SIGKILL)
    left = alive(pids[1:])
    assert len(left) == 3
    cancel(agent, spec)
    assert alive(pids) == []


def test_next_attempt_meets_nobody(agent: AgentClient, breeder: Path, runner: Path) -> None:
    spec = agent.spec(breeder)
    start(agent, spec)
    pids = ready(spec)
    kill_supervisor(spec)
    os.kill(pids[0], signal.SIGKILL)
    # What is left has inherited the lock, and yet nobody supervises it or will end it.
    assert agent.wait(spec).state is AttemptState.VANISHED
    assert len(alive(pids)) == 3
    second = agent.spec(runner, attempt=2)
    assert start(agent, second).started
    assert alive(pids) == []
    ready(second)
    go(second)
    assert agent.wait(second).state is AttemptState.FINISHED


def test_supervisor_told_to_end_is_not_a_cancellation(agent: AgentClient, runner: Path) -> None:
    spec = agent.spec(runner)
    start(agent, spec)
    pids = ready(spec)
    kill_supervisor(spec, signal.SIGTERM)
    over = agent.wait(spec)
    assert over.exit is not None
    assert over.exit.cause == "terminated"
    assert alive(pids) == []


def test_line_torn_by_a_kill_spoils_no_other(agent: AgentClient, tmp_path: Path) -> None:
    stage = script(
        tmp_path / "tears",
        '#!/bin/sh\nread x < go\necho \'{"kind":"progress"}\' >&"$COSMA_EVENTS_FD"\n'
        'printf \'{"kind":"pro\' >&"$COSMA_EVENTS_FD"\nkill -9 $$\n',
    )
    spec = agent.spec(stage)
    start(agent, spec)
    go(spec)
    over = agent.wait(spec)
    lines = files_of(spec).events.read_text().splitlines()
    assert sorted(json.loads(line)["kind"] for line in lines) == ["exited", "progress", "started"]
    assert over.events_bytes == files_of(spec).events.stat().st_size
