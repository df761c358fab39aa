"""The SSH executor with the real agent behind a real sshd: verbs, transfers, lost links."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from dispatcher import agent_bundle
from dispatcher.core.model import Reason
from dispatcher.errors import AgentBroken, AgentRefusal, TakenOver, TransferError, TransportError
from dispatcher.executors.base import Wanted
from dispatcher.executors.ssh import SshExecutor
from dispatcher.executors.transfer import file_sha256
from dispatcher.fleet import Fleet
from dispatcher.inventory_model import Inventory
from tests.sshd import Farm, Sshd, farm, make_key
from worker_agent.protocol import (
    PROTOCOL_VERSION,
    AttemptRef,
    AttemptSpec,
    AttemptState,
    FetchRequest,
    FrameHeader,
    WatchRequest,
)

__all__ = ["farm"]

STRANGE = (
    "with space.mp4",
    'quote\'d "twice".mp4',
    "new\nline.mp4",
    "-rf",
    "--help",
    "$(touch owned) `id` ;&|.mp4",
    "übergröße 海底 🐟.mp4",
    "deep/er/than one.mp4",
)


@pytest.fixture(scope="module")
def bundle() -> agent_bundle.AgentBundle:
    return agent_bundle.build()


@pytest.fixture
def server(farm: Farm) -> Sshd:
    return farm.start()


@pytest_asyncio.fixture
async def executor(server: Sshd, bundle: agent_bundle.AgentBundle) -> AsyncIterator[SshExecutor]:
    made = SshExecutor.connect_to(server.inventory_host(python=sys.executable), bundle)
    yield made
    await made.close()


@pytest.fixture
def run_dir(server: Sshd) -> str:
    return str(server.work_dir / "survey" / "job-1")


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


async def test_strange_file_names_cross_both_ways_unchanged(
    executor: SshExecutor, run_dir: str, tmp_path: Path
) -> None:
    for index, name in enumerate(STRANGE):
        content = random.Random(index).randbytes(1000 * index)  # the first one is empty
        local = tmp_path / "here" / name
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(content)
        pushed = await executor.push_file(local, run_dir, f"input/{name}")
        assert pushed.complete and pushed.sha256 == hashlib.sha256(content).hexdigest()
        assert (Path(run_dir) / "input" / name).read_bytes() == content
        back = tmp_path / "back" / name
        collected = await executor.collect_file(run_dir, f"input/{name}", back)
        assert collected.complete and back.read_bytes() == content
    assert not list(tmp_path.rglob("*.part")) and not list(Path(run_dir).rglob("*.part"))
    assert not list(tmp_path.rglob("owned"))


async def test_a_push_that_is_there_already_moves_nothing(
    executor: SshExecutor, run_dir: str, tmp_path: Path, server: Sshd
) -> None:
    local = tmp_path / "clip"
    local.write_bytes(bytes(100_000))
    await executor.push_file(local, run_dir, "input/clip")
    stamp = (Path(run_dir) / "input/clip").stat().st_mtime_ns
    told: list[int] = []
    again = await executor.push_file(
        local, run_dir, "input/clip", progress=lambda there, _: told.append(there)
    )
    assert again.complete and told == [100_000]
    assert (Path(run_dir) / "input/clip").stat().st_mtime_ns == stamp


async def until_the_loss_is_known(executor: SshExecutor) -> None:
    """Each connection is known to be lost once somebody used it."""
    with contextlib.suppress(TransportError):
        await executor.list_attempts()


async def test_an_interrupted_push_goes_on_where_it_stopped(
    executor: SshExecutor, run_dir: str, tmp_path: Path, server: Sshd
) -> None:
    local = tmp_path / "clip.mp4"
    local.write_bytes(random.Random(1).randbytes(24 << 20))

    def cut(there: int, size: int) -> None:
        if there >= size // 2:
            server.kill_sessions()

    with pytest.raises(TransportError):
        await executor.push_file(local, run_dir, "input/clip.mp4", progress=cut)
    assert not (Path(run_dir) / "input/clip.mp4").exists()
    await until_the_loss_is_known(executor)
    told: list[int] = []
    report = await executor.push_file(
        local, run_dir, "input/clip.mp4", progress=lambda there, _: told.append(there)
    )
    assert report.complete and report.sha256 == file_sha256(local)
    assert file_sha256(Path(run_dir) / "input/clip.mp4") == report.sha256
    assert told[0] > 2 << 20  # the first block of the second push is not the first of the file


async def test_an_interrupted_collection_goes_on_where_it_stopped(
    executor: SshExecutor, run_dir: str, tmp_path: Path, server: Sshd
) -> None:
    there = Path(run_dir) / "output" / "scene.ply"
    there.parent.mkdir(parents=True)
    there.write_bytes(random.Random(2).randbytes(24 << 20))
    local = tmp_path / "scene.ply"

    def cut(received: int, size: int) -> None:
        if received >= size // 2:
            server.kill_sessions()

    with pytest.raises(TransportError):
        await executor.collect_file(run_dir, "output/scene.ply", local, progress=cut)
    assert not local.exists()
    got = (tmp_path / "scene.ply.part").stat().st_size
    await until_the_loss_is_known(executor)
    told: list[int] = []
    report = await executor.collect_file(
        run_dir, "output/scene.ply", local, progress=lambda there, _: told.append(there)
    )
    assert report.complete and local.read_bytes() == there.read_bytes()
    assert told[0] > got > 0


async def test_leftovers_of_another_file_are_not_glued_on(
    executor: SshExecutor, run_dir: str, tmp_path: Path
) -> None:
    content = random.Random(3).randbytes(300_000)
    local = tmp_path / "clip"
    local.write_bytes(content)
    target = Path(run_dir) / "input" / "clip"
    target.parent.mkdir(parents=True)
    for leftover in (bytes(100_000), bytes(900_000)):
        target.unlink(missing_ok=True)
        target.with_name("clip.part").write_bytes(leftover)
        assert (await executor.push_file(local, run_dir, "input/clip")).complete
        assert target.read_bytes() == content
        back = tmp_path / f"back-{len(leftover)}"
        back.with_name(back.name + ".part").write_bytes(leftover)
        assert (await executor.collect_file(run_dir, "input/clip", back)).complete
        assert back.read_bytes() == content


async def test_what_cannot_be_transferred_says_why(
    executor: SshExecutor, run_dir: str, tmp_path: Path
) -> None:
    with pytest.raises(TransferError) as missing:
        await executor.push_file(tmp_path / "gone.mp4", run_dir, "input/gone.mp4")
    assert missing.value.reason is Reason.INPUT_MISSING and "gone.mp4" in missing.value.line
    with pytest.raises(AgentRefusal) as absent:
        await executor.collect_file(run_dir, "output/none.ply", tmp_path / "none.ply")
    assert absent.value.reason is Reason.INPUT_MISSING
    (tmp_path / "other").write_bytes(b"other")
    await executor.push_file(tmp_path / "other", run_dir, "output/other")
    with pytest.raises(TransferError) as changed:
        await executor.collect_file(
            run_dir, "output/other", tmp_path / "mine", sha256=hashlib.sha256(b"mine").hexdigest()
        )
    assert changed.value.reason is Reason.TRANSFER_CORRUPT
    assert not (tmp_path / "mine").exists()
    with pytest.raises(AgentRefusal) as outside:
        await executor.push_file(tmp_path / "other", run_dir, "../../../escaped")
    assert outside.value.refusal.error == "bad_request"


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


async def test_small_files_come_in_one_call_and_what_is_wrong_is_named(
    executor: SshExecutor, run_dir: str, tmp_path: Path
) -> None:
    there = Path(run_dir) / "output"
    there.mkdir(parents=True)
    wanted = []
    for index in range(12):
        content = random.Random(index).randbytes(40_000 * (index % 3))  # more than one portion
        (there / f"f{index}").write_bytes(content)
        digest = hashlib.sha256(b"other" if index == 5 else content).hexdigest()
        wanted.append(
            Wanted(
                path=f"output/f{index}", kind="preview", local=tmp_path / "here" / f"f{index}",
                bytes=len(content), sha256=digest,
            )
        )  # fmt: skip
    gone = Wanted(
        path="output/gone", kind="preview", local=tmp_path / "here" / "gone", bytes=1, sha256="0"
    )
    left = await executor.collect_small(run_dir, [*wanted, gone])
    assert left == [wanted[5], gone]
    for file in wanted:
        name = file.local.name
        assert file is wanted[5] or file.local.read_bytes() == (there / name).read_bytes()
    assert not wanted[5].local.exists() and not list(tmp_path.rglob("*.part"))
    stamp = wanted[0].local.stat().st_mtime_ns
    assert await executor.collect_small(run_dir, wanted[:2]) == []
    assert wanted[0].local.stat().st_mtime_ns == stamp, "what is here already stays"


async def test_the_host_itself_fetches_and_reclaims(
    executor: SshExecutor, run_dir: str, tmp_path: Path
) -> None:
    source = tmp_path / "a clip.mp4"
    source.write_bytes(bytes(200_000))
    report = await executor.fetch(
        FetchRequest(source=str(source), run_dir=run_dir, path="input/clip.mp4")
    )
    assert report.complete and report.bytes == 200_000
    reclaimed = await executor.reclaim(
        run_dir,
        ["input/clip.mp4"],
        epoch=1,
        expected_sha256={"input/clip.mp4": file_sha256(source)},
    )
    assert reclaimed.removed == ("input/clip.mp4",)
    assert reclaimed.remaining_input_bytes == 0 and source.exists()


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
