"""The SSH executor with the real agent behind a real sshd: verbs, sessions, lost links."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from pathlib import Path

import pytest

from dispatcher import agent_bundle
from dispatcher.core.model import Reason
from dispatcher.errors import AgentBroken, TakenOver, TransportError
from dispatcher.executors.ssh import SshExecutor
from dispatcher.fleet import Fleet
from dispatcher.inventory_model import Inventory
from tests.executor_host import bundle, executor, farm, run_dir, server
from tests.sshd import Farm, Sshd, make_key
from worker_agent.protocol import (
    PROTOCOL_VERSION,
    AttemptRef,
    AttemptSpec,
    AttemptState,
    FrameHeader,
    WatchRequest,
)

__all__ = ["bundle", "executor", "farm", "run_dir", "server"]


def fake_stage(path: Path, body: str) -> Path:
    """A stage interpreter whose stage is `body`: it emits events, and ends when told to."""
    path.write_text(
        f"#!{sys.executable}\n"
        "import json, os, pathlib, sys\n"
        "started = pathlib.Path(sys.argv[-1])\n"
        "attempt = json.loads(started.read_text())['spec']['attempt']\n"
        "events = open(started.with_name('events.jsonl'), 'ab', buffering=0)\n"
        "def emit(number):\n"
        "    line = {'time': 0, 'attempt': attempt, 'kind': 'progress', 'number': number}\n"
        "    events.write(json.dumps(line).encode() + b'\\n')\n"
        "def finish():\n"
        "    started.with_name('result.json').write_text(json.dumps({'ok': True}))\n" + body
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def spec_of(run_dir: str, python: Path, attempt: int = 1) -> AttemptSpec:
    return AttemptSpec(
        protocol=PROTOCOL_VERSION,
        epoch=1,
        acquisition="survey",
        job="job-1",
        attempt=attempt,
        stage="Validation",
        run_dir=run_dir,
        stage_python=str(python),
    )


async def test_probe_pushes_the_agent_once_by_its_hash(
    executor: SshExecutor, server: Sshd, bundle: agent_bundle.AgentBundle
) -> None:
    facts = await executor.probe()
    assert facts.agent_hash == bundle.sha256
    assert facts.disk_free_bytes > 0 and facts.gpus
    agent = server.work_dir / ".cosma" / f"agent-{bundle.sha256[:12]}.pyz"
    assert agent.read_bytes() == bundle.data
    before = agent.stat().st_mtime_ns
    other = SshExecutor.connect_to(server.inventory_host(python=sys.executable), bundle)
    await other.probe()
    await other.close()
    assert agent.stat().st_mtime_ns == before


async def test_a_damaged_or_removed_agent_is_put_back(
    executor: SshExecutor, server: Sshd, bundle: agent_bundle.AgentBundle
) -> None:
    agent = Path(await executor.ensure_agent())
    agent.unlink()
    assert (await executor.probe()).agent_hash == bundle.sha256
    agent.write_bytes(b"damaged")
    other = SshExecutor.connect_to(server.inventory_host(python=sys.executable), bundle)
    assert (await other.probe()).agent_hash == bundle.sha256
    await other.close()
    assert agent.read_bytes() == bundle.data


async def test_the_home_directory_is_resolved_on_the_host(
    server: Sshd, bundle: agent_bundle.AgentBundle
) -> None:
    name = f"cosma-test-{os.getpid()}"
    host = server.inventory_host(python=sys.executable, work_dir=f"~/{name}")
    executor = SshExecutor.connect_to(host, bundle)
    try:
        assert await executor.work_dir() == str(Path.home() / name)
    finally:
        await executor.close()
        for path in sorted((Path.home() / name).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (Path.home() / name).rmdir()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"python": "/no/such/python3"}, "python"),
        ({"work_dir": "/proc/cosma"}, "work directory"),
        ({"python": "false"}, "exit 1"),
    ],
)
async def test_a_host_that_cannot_run_the_agent_says_what_to_do(
    server: Sshd, bundle: agent_bundle.AgentBundle, changes: dict[str, str], said: str
) -> None:
    host = server.inventory_host(**{"python": sys.executable, **changes})
    executor = SshExecutor.connect_to(host, bundle)
    with pytest.raises(AgentBroken) as caught:
        await executor.probe()
    await executor.close()
    assert said in caught.value.line and "Set `" in caught.value.line
    assert "\n" not in caught.value.line
    assert caught.value.reason is Reason.AGENT_FAILED


async def test_follow_survives_a_cut_link_without_losing_an_event(
    executor: SshExecutor, run_dir: str, tmp_path: Path, server: Sshd
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    body = (
        "for i in range(50): emit(i)\n"
        f"open({str(gate)!r}).read()\n"
        "for i in range(50, 100): emit(i)\n"
        "finish()\n"
    )
    spec = spec_of(run_dir, fake_stage(tmp_path / "stage", body))
    first = await executor.start(spec)
    again = await executor.start(spec)
    assert first.started and not again.started

    received: dict[str, bytes] = {"events": b"", "log": b""}
    exits: list[bytes] = []

    def take(header: FrameHeader, frame: bytes) -> None:
        if header.kind == "exit":
            exits.append(frame)
        elif header.kind != "heartbeat":
            assert header.offset == len(received[header.kind])
            received[header.kind] += frame

    follower = await executor.follow()
    await follower.watch(WatchRequest(run_dir=run_dir, attempt=1))
    with pytest.raises(TransportError) as caught:
        async for header, frame in follower:
            take(header, frame)
            if received["events"].count(b'"number"') == 50:
                server.kill_sessions()
    assert caught.value.reason is Reason.HOST_UNREACHABLE
    await follower.close()
    await asyncio.to_thread(gate.write_text, "go")

    follower = await executor.follow()
    offsets = {f"{kind}_from": len(text) for kind, text in received.items()}
    await follower.watch(WatchRequest(run_dir=run_dir, attempt=1, **offsets))
    async for header, frame in follower:
        take(header, frame)
        if exits:
            break
    await follower.close()

    lines = [json.loads(line) for line in received["events"].splitlines()]
    assert [line["number"] for line in lines if "number" in line] == list(range(100))
    assert json.loads(exits[0])["state"] == AttemptState.FINISHED
    (status,) = await executor.status([AttemptRef(run_dir=run_dir, attempt=1)])
    assert status.exit is not None and status.exit.outcome is not None and status.exit.outcome.ok
    (listed,) = await executor.list_attempts()
    assert (listed.run_dir, listed.attempt) == (run_dir, 1)


async def test_a_running_attempt_is_renewed_and_cancelled(
    executor: SshExecutor, run_dir: str, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    body = f"open({str(ready)!r}, 'w').close()\nimport time\ntime.sleep(60)\n"
    await executor.start(spec_of(run_dir, fake_stage(tmp_path / "stage", body)))
    await asyncio.to_thread(ready.read_bytes)
    ref = AttemptRef(run_dir=run_dir, attempt=1)
    (renewed,) = await executor.renew([ref], epoch=2)
    assert renewed.state is AttemptState.RUNNING
    with pytest.raises(TakenOver, match="another dispatcher took over"):
        await executor.cancel(ref, epoch=1)
    await executor.cancel(ref, epoch=2, grace_s=1.0)
    (status,) = await executor.status([ref])
    assert status.state is AttemptState.FINISHED
    assert status.exit is not None and status.exit.cause == "cancelled"


async def test_a_lost_session_fails_its_calls_and_the_next_call_opens_another(
    executor: SshExecutor, run_dir: str, tmp_path: Path, server: Sshd
) -> None:
    os.mkfifo(ready := tmp_path / "ready")
    body = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(ready)!r}, 'w').close()\ntime.sleep(60)\n"
    )
    await executor.start(spec_of(run_dir, fake_stage(tmp_path / "stage", body)))
    await asyncio.to_thread(ready.read_bytes)
    ref = AttemptRef(run_dir=run_dir, attempt=1)
    waiting = asyncio.create_task(executor.cancel(ref, epoch=1, grace_s=2.0))
    noted = Path(run_dir) / "attempts" / "1" / "cancel.json"
    while not await asyncio.to_thread(noted.exists):
        (status,) = await executor.status([ref])  # not held up by the call that waits
    assert status.state is AttemptState.RUNNING and not waiting.done()
    server.kill_sessions()
    with pytest.raises(TransportError) as caught:
        await waiting
    assert caught.value.sent, "it arrived, and the host goes on with it"
    over = await executor.cancel(ref, epoch=1, grace_s=2.0)
    assert over.exit is not None and over.exit.cause == "cancelled"


async def test_a_call_without_an_answer_is_a_lost_link(
    executor: SshExecutor, run_dir: str, tmp_path: Path
) -> None:
    await executor.probe()
    with pytest.raises(TransportError, match="no answer to `probe` within 0 s") as caught:
        await executor.probe(timeout_s=0.0)
    assert caught.value.reason is Reason.HOST_UNREACHABLE
    assert (await executor.probe()).disk_free_bytes > 0, "the session is still good"


async def test_the_fleet_keeps_what_each_host_said(
    farm: Farm, bundle: agent_bundle.AgentBundle, tmp_path: Path
) -> None:
    good, gone, stranger = (farm.start(name) for name in ("good", "gone", "stranger"))
    wrong = make_key(tmp_path / "wrong").with_suffix(".pub").read_text().strip()
    gone.stop()
    inventory = Inventory(
        hosts=(
            good.inventory_host(python=sys.executable, stage_python=sys.executable),
            gone.inventory_host(python=sys.executable),
            stranger.inventory_host(python=sys.executable, host_key=wrong),
        )
    )
    fleet = Fleet.of(inventory, lambda host: SshExecutor.connect_to(host, bundle))
    await fleet.probe_all(timeout_s=20.0)
    views = {view.name: view for view in fleet.host_views()}
    assert views["good"].reachable and views["good"].gpus
    assert views["gone"].unreachable_reason is Reason.HOST_UNREACHABLE
    assert views["stranger"].unreachable_reason is Reason.HOST_KEY_MISMATCH
    assert "host key does not match" in views["stranger"].unreachable_message
    # The host comes back: the next probe says so, over a new connection.
    farm.start("gone", port=gone.port)
    await fleet.probe("gone", 20.0)
    assert {view.name for view in fleet.host_views() if view.reachable} == {"good", "gone"}
    await fleet.close()


async def test_a_self_test_that_fails_is_an_answer_and_says_what_is_wrong(
    server: Sshd, bundle: agent_bundle.AgentBundle, tmp_path: Path
) -> None:
    hole = tmp_path / "python"
    hole.write_text(f'#!/bin/sh\n[ "$1" = -m ] && exit 9\nexec {sys.executable} "$@"\n')
    hole.chmod(0o755)
    host = server.inventory_host(python=sys.executable, stage_python=str(hole))
    executor = SshExecutor.connect_to(host, bundle)
    try:
        report = await executor.selftest(None, "cpu")
    finally:
        await executor.close()
    assert not report.ok
    wrong = {check.name: check.message for check in report.checks if not check.ok}
    assert wrong and all("exit code 9" in message for message in wrong.values())
    assert any(check.ok for check in report.checks), "what the agent itself relies on works"
