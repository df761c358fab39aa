"""The agent with real processes: started once, killed in every way, never left behind.

The stage is a shell script in the place of the stages' Python interpreter. It tells that it runs by
writing to a named pipe, and goes on when the test says so through another.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.agent_client import AgentClient, script
from worker_agent import attempts, processes
from worker_agent.attempts import AttemptFiles
from worker_agent.protocol import (
    AttemptRef,
    AttemptSpec,
    AttemptState,
    AttemptStatus,
    CancelRequest,
    FailureCode,
    ListRequest,
    RenewRequest,
    StageOutcome,
    StartReply,
    StatusRequest,
)

BLOCKS = "#!/bin/sh\necho $$ > ready\nread line < go\n"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentClient]:
    client = AgentClient(tmp_path / "work")
    run_dir = client.work_dir / "reef" / "a-1"
    run_dir.mkdir(parents=True)
    for pipe in ("ready", "go"):
        os.mkfifo(run_dir / pipe)
    yield client
    client.end_all()


@pytest.fixture
def blocks(tmp_path: Path) -> Path:
    return script(tmp_path / "blocks", BLOCKS)


def ready(spec: AttemptSpec) -> list[int]:
    """What the stage wrote to `ready`: process ids. Waits until it has."""
    return [int(word) for word in (Path(spec.run_dir) / "ready").read_text().split()]


def go(spec: AttemptSpec) -> None:
    (Path(spec.run_dir) / "go").write_text("\n")


def start(agent: AgentClient, spec: AttemptSpec) -> StartReply:
    answer = agent.call("start", spec)
    assert answer.code == 0, (answer.lines, answer.stderr)
    return StartReply.from_dict(answer.one)


def refused(agent: AgentClient, spec: AttemptSpec) -> str:
    answer = agent.call("start", spec)
    assert answer.code == 3, answer.lines
    return str(answer.one["error"])


def status(agent: AgentClient, spec: AttemptSpec) -> AttemptStatus:
    request = StatusRequest(attempts=(AttemptRef(run_dir=spec.run_dir, attempt=spec.attempt),))
    return AttemptStatus.from_dict(agent.call("status", request).one)


def files_of(spec: AttemptSpec) -> AttemptFiles:
    return AttemptFiles(Path(spec.run_dir), spec.attempt)


def alive(pids: list[int]) -> list[int]:
    stats = {pid: processes.stat_of(pid) for pid in pids}
    return [pid for pid, stat in stats.items() if stat is not None and stat.state not in "ZX"]


def cancel(agent: AgentClient, spec: AttemptSpec, epoch: int = 1) -> AttemptStatus:
    request = CancelRequest(epoch=epoch, run_dir=spec.run_dir, attempt=spec.attempt, grace_s=0.3)
    return AttemptStatus.from_dict(agent.call("cancel", request).one)


def test_twenty_starts_at_once_run_it_once(agent: AgentClient, tmp_path: Path) -> None:
    stage = script(tmp_path / "counts", "#!/bin/sh\necho x >> runs\nread line < go\n")
    spec = agent.spec(stage)
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda _: start(agent, spec), range(20)))
    assert [reply.started for reply in replies].count(True) == 1
    assert {reply.state for reply in replies} == {AttemptState.RUNNING}
    # One that comes before the supervisor has noted the pid cannot know it.
    assert len({reply.pid for reply in replies} - {None}) == 1
    go(spec)
    over = agent.wait(spec)
    assert over.exit is not None
    assert (over.exit.cause, over.exit.returncode) == ("exited", 0)
    assert (Path(spec.run_dir) / "runs").read_text() == "x\n"
    again = start(agent, spec)
    assert (again.started, again.state) == (False, AttemptState.FINISHED)
    assert (Path(spec.run_dir) / "runs").read_text() == "x\n"


def test_stage_sees_its_contract(agent: AgentClient, tmp_path: Path) -> None:
    stage = script(
        tmp_path / "tells",
        '#!/bin/sh\necho "$@"; pwd; echo "$COSMA_ATTEMPT"; echo "$PYTHONPATH"; '
        'echo "gpu=$CUDA_VISIBLE_DEVICES"; read line || echo eof; '
        'echo \'{"kind":"progress"}\' >&"$COSMA_EVENTS_FD"\n',
    )
    spec = agent.spec(stage, gpu="GPU-aaaa", gpu_kind="cuda", config={"frames": {"fps": 5.0}})
    start(agent, spec)
    over = agent.wait(spec)
    files = files_of(spec)
    assert files.log.read_text().splitlines() == [
        f"-m worker_agent.stages {files.started}",
        spec.run_dir,
        f"{spec.run_dir}#1",
        str(Path(attempts.__file__).parent.parent),
        "gpu=GPU-aaaa",
        "eof",
    ]
    events = [json.loads(line) for line in files.events.read_text().splitlines()]
    assert sorted(event["kind"] for event in events) == ["exited", "progress", "started"]
    assert AttemptSpec.from_dict(json.loads(files.started.read_text())["spec"]) == spec
    assert json.loads((files.run_dir / "spec.json").read_text())["job"] == "a-1"
    assert over.exit is not None
    assert over.exit.events_bytes == files.events.stat().st_size
    assert over.exit.log_bytes == files.log.stat().st_size
    assert over.exit.peak_rss_mib > 0
    assert over.exit.peak_disk_bytes is not None


def test_killed_stage_is_told_from_a_failed_one(agent: AgentClient, blocks: Path) -> None:
    spec = agent.spec(blocks)
    start(agent, spec)
    (pid,) = ready(spec)
    os.kill(pid, signal.SIGKILL)
    over = agent.wait(spec)
    assert over.state is AttemptState.FINISHED
    assert over.exit is not None
    assert (over.exit.cause, over.exit.signal, over.exit.returncode) == ("signalled", 9, None)
    assert over.exit.outcome is None


def test_killed_stage_and_supervisor_are_vanished(agent: AgentClient, blocks: Path) -> None:
    spec = agent.spec(blocks)
    start(agent, spec)
    (pid,) = ready(spec)
    supervisor = json.loads(files_of(spec).processes.read_text())["supervisor"]
    os.kill(supervisor, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    over = agent.wait(spec)
    assert (over.state, over.exit, over.rebooted) == (AttemptState.VANISHED, None, False)
    again = start(agent, spec)
    assert (again.started, again.state) == (False, AttemptState.VANISHED)
    second = agent.spec(blocks, attempt=2)
    assert start(agent, second).started
    ready(second)
    go(second)
    assert agent.wait(second).state is AttemptState.FINISHED
    assert status(agent, spec).state is AttemptState.VANISHED


def test_stage_that_outlives_its_supervisor_keeps_its_result(
    agent: AgentClient, tmp_path: Path
) -> None:
    outcome = StageOutcome(ok=True, metrics={"clips": 2})
    stage = script(
        tmp_path / "finishes",
        f"{BLOCKS}echo '{outcome.to_json()}' > attempts/1/result.json\n",
    )
    spec = agent.spec(stage)
    start(agent, spec)
    ready(spec)
    os.kill(json.loads(files_of(spec).processes.read_text())["supervisor"], signal.SIGKILL)
    assert status(agent, spec).state is AttemptState.RUNNING
    go(spec)
    over = agent.wait(spec)
    assert over.state is AttemptState.FINISHED
    assert over.exit is not None
    assert over.exit.outcome == outcome


def test_interpreter_that_is_not_there(agent: AgentClient) -> None:
    spec = agent.spec("/absent/python")
    reply = start(agent, spec)
    assert (reply.started, reply.state, reply.pid) == (True, AttemptState.FINISHED, None)
    over = agent.wait(spec)
    assert over.exit is not None
    assert over.exit.cause == "spawn_failed"
    assert over.exit.outcome is not None
    assert over.exit.outcome.reason is FailureCode.TOOL_MISSING
    assert "/absent/python" in over.exit.outcome.message


def test_lease_that_is_not_renewed_ends_the_stage(agent: AgentClient, blocks: Path) -> None:
    spec = agent.spec(blocks, lease_s=0.2)
    start(agent, spec)
    over = agent.wait(spec)
    assert over.exit is not None
    assert (over.exit.cause, over.exit.signal) == ("lease_expired", signal.SIGTERM)


def test_renewal_extends_the_lease_of_what_runs(agent: AgentClient, blocks: Path) -> None:
    spec = agent.spec(blocks, lease_s=600.0)
    start(agent, spec)
    ready(spec)
    before = json.loads(files_of(spec).lease.read_text())["until"]
    references = tuple(AttemptRef(run_dir=spec.run_dir, attempt=n) for n in (1, 9))
    request = RenewRequest(epoch=1, work_dir=str(agent.work_dir), attempts=references)
    replies = agent.call("renew", request).lines
    assert [reply["state"] for reply in replies] == ["running", "never_started"]
    assert json.loads(files_of(spec).lease.read_text())["until"] > before
    older = RenewRequest(epoch=0, work_dir=str(agent.work_dir), attempts=references)
    answer = agent.call("renew", older)
    assert (answer.code, answer.one["error"]) == (3, "stale_epoch")
    go(spec)
    agent.wait(spec)


def test_timeout_ends_the_stage(agent: AgentClient, blocks: Path) -> None:
    spec = agent.spec(blocks, timeout_s=0.2)
    start(agent, spec)
    over = agent.wait(spec)
    assert over.exit is not None
    assert over.exit.cause == "timeout"


def test_cancel_ends_the_group_and_whatever_escaped_it(agent: AgentClient, tmp_path: Path) -> None:
    deaf = script(tmp_path / "deaf", "#!/bin/sh\ntrap '' TERM\necho $$ >> pids\nread x < never\n")
    stage = script(
        tmp_path / "breeds",
        f"#!/bin/sh\ntrap '' TERM\nmkfifo never\n{deaf} &\nsetsid {deaf} &\n"
        # Leaves the group, its parent, and its environment behind.
        f"env -i PATH=\"$PATH\" setsid sh -c '{deaf} & exit' &\n"
        'while [ "$(wc -l < pids 2>/dev/null || echo 0)" -lt 3 ]; do sleep 0.02; done\n'
        "echo $$ $(cat pids) > ready\nread x < never\n",
    )
    spec = agent.spec(stage)
    start(agent, spec)
    pids = ready(spec)
    assert len(alive(pids)) == 4
    over = cancel(agent, spec)
    assert over.state is AttemptState.FINISHED
    assert over.exit is not None
    assert (over.exit.cause, over.exit.signal) == ("cancelled", 9)
    agent.wait(spec)
    assert alive(pids) == []
    assert cancel(agent, spec).exit == over.exit


def test_cancelled_before_its_start_never_starts(agent: AgentClient, blocks: Path) -> None:
    spec = agent.spec(blocks)
    assert cancel(agent, spec).state is AttemptState.NEVER_STARTED
    assert refused(agent, spec) == "cancelled"
    assert status(agent, spec).state is AttemptState.NEVER_STARTED


def test_orphans_of_a_vanished_attempt_do_not_meet_the_next(
    agent: AgentClient, tmp_path: Path, blocks: Path
) -> None:
    # 0<&- and no inherited lock: nothing but the cookie ties the child to its attempt.
    stage = script(
        tmp_path / "leaks",
        f"#!{sys.executable}\nimport subprocess, os\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "open('ready', 'w').write(f'{os.getpid()} {child.pid}')\nopen('go').read()\n",
    )
    spec = agent.spec(stage)
    start(agent, spec)
    pid, orphan = ready(spec)
    os.kill(json.loads(files_of(spec).processes.read_text())["supervisor"], signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    assert agent.wait(spec).state is AttemptState.VANISHED
    assert alive([orphan]) == [orphan]
    second = agent.spec(blocks, attempt=2)
    start(agent, second)
    assert alive([orphan]) == []
    ready(second)
    go(second)
    agent.wait(second)


def test_fences(agent: AgentClient, blocks: Path) -> None:
    spec = agent.spec(blocks, epoch=5, attempt=3)
    start(agent, spec)
    ready(spec)
    assert refused(agent, agent.spec(blocks, epoch=4, attempt=4)) == "stale_epoch"
    assert refused(agent, agent.spec(blocks, epoch=5, attempt=4)) == "busy"
    assert refused(agent, agent.spec(blocks, epoch=5, attempt=4, protocol=99)) == "bad_request"
    go(spec)
    agent.wait(spec)
    assert refused(agent, agent.spec(blocks, epoch=5, attempt=2)) == "stale_attempt"
    listed = agent.call("list", ListRequest(work_dir=str(agent.work_dir))).lines
    assert [(item["attempt"], item["state"]) for item in listed] == [(3, "finished")]
