"""One process of the agent serves every call: none waits for another, none takes it down, and what
was started outlives it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent_client import AgentClient, Session, script
from worker_agent.attempts import AttemptFiles
from worker_agent.follow import Follower
from worker_agent.inotify import Watcher
from worker_agent.protocol import (
    EXIT_OK,
    EXIT_REFUSED,
    EXIT_USAGE,
    AttemptRef,
    AttemptSpec,
    AttemptState,
    CancelRequest,
    ListRequest,
    Message,
    RenewRequest,
    StatusRequest,
    WatchRequest,
)

STUBBORN = f"""#!{sys.executable}
import pathlib, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("ready").touch()
time.sleep(60)
"""


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentClient]:
    client = AgentClient(tmp_path / "work")
    yield client
    client.end_all()


def ask(session: Session, call: int, verb: str, request: Message | bytes) -> None:
    line = request if isinstance(request, bytes) else request.to_json().encode() + b"\n"
    session.send(call, verb, line)


def replies(session: Session) -> Iterator[tuple[int, int, list[dict[str, object]]]]:
    """(call, exit code, what it said) as they come."""
    for header, body in session.frames():
        if header.kind == "reply":
            yield header.call, header.code, [json.loads(line) for line in body.splitlines()]


def status_of(spec: AttemptSpec) -> StatusRequest:
    return StatusRequest(attempts=(AttemptRef(run_dir=spec.run_dir, attempt=spec.attempt),))


def test_a_call_says_what_its_verb_says_alone(agent: AgentClient, tmp_path: Path) -> None:
    spec = agent.spec(script(tmp_path / "stage", "#!/bin/sh\nexit 0\n"))
    requests: list[tuple[str, Message | bytes]] = [
        ("list", ListRequest(work_dir=str(agent.work_dir))),
        ("status", status_of(spec)),
        ("start", b"nonsense\n"),
        ("explode", b""),
        ("renew", RenewRequest(epoch=5, work_dir=str(agent.work_dir), attempts=())),
        ("cancel", CancelRequest(epoch=4, run_dir=spec.run_dir, attempt=1)),
    ]
    alone = [agent.call(verb, request) for verb, request in requests]
    with agent.session() as session:
        answers = replies(session)
        for number, (verb, request) in enumerate(requests):
            ask(session, number, verb, request)
            call, code, said = next(answers)
            assert (call, code, said) == (number, alone[number].code, alone[number].lines), verb
    assert [answer.code for answer in alone] == [
        EXIT_OK, EXIT_OK, EXIT_USAGE, EXIT_USAGE, EXIT_OK, EXIT_REFUSED,
    ]  # fmt: skip


def test_a_call_that_takes_long_holds_up_no_other(agent: AgentClient, tmp_path: Path) -> None:
    spec = agent.spec(script(tmp_path / "stage", STUBBORN))
    agent.call("start", spec)
    with agent.session() as session:
        answers = replies(session)
        cancel = CancelRequest(epoch=1, run_dir=spec.run_dir, attempt=1, grace_s=1.0)
        ask(session, 1, "cancel", cancel)
        while not AttemptFiles(Path(spec.run_dir), 1).cancel.exists():
            ask(session, 2, "status", status_of(spec))
            assert next(answers)[0] == 2
        ask(session, 3, "status", status_of(spec))
        call, _, (status,) = next(answers)
        assert (call, status["state"]) == (3, AttemptState.RUNNING)
        call, _, (status,) = next(answers)
        assert (call, status["state"]) == (1, AttemptState.FINISHED)


def test_a_call_that_is_killed_is_answered_and_the_session_goes_on(
    agent: AgentClient, tmp_path: Path
) -> None:
    spec = agent.spec(script(tmp_path / "stage", STUBBORN))
    agent.call("start", spec)
    with agent.session() as session:
        answers = replies(session)
        ask(session, 1, "cancel", CancelRequest(epoch=1, run_dir=spec.run_dir, attempt=1))
        while not AttemptFiles(Path(spec.run_dir), 1).cancel.exists():
            ask(session, 2, "status", status_of(spec))
            next(answers)
        pid = session.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        assert next(answers) == (1, -signal.SIGKILL, [])
        ask(session, 3, "status", status_of(spec))
        assert next(answers)[:2] == (3, EXIT_OK)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_what_was_started_outlives_the_session(
    agent: AgentClient, tmp_path: Path, how: signal.Signals
) -> None:
    os.mkfifo(gate := tmp_path / "gate")
    spec = agent.spec(script(tmp_path / "stage", f"#!/bin/sh\nread line < {gate}\necho $line\n"))
    with agent.session() as session:
        ask(session, 1, "start", spec)
        assert next(replies(session))[1] == EXIT_OK
        session.process.send_signal(how)
        session.process.wait()
    assert agent.call("status", status_of(spec)).one["state"] == AttemptState.RUNNING
    gate.write_text("it went on\n")
    over = agent.wait(spec)
    assert over.exit is not None and over.exit.cause == "exited"
    assert AttemptFiles(Path(spec.run_dir), 1).log.read_text() == "it went on\n"


def test_the_same_attempt_started_again_and_again_runs_once(
    agent: AgentClient, tmp_path: Path
) -> None:
    spec = agent.spec(script(tmp_path / "stage", "#!/bin/sh\necho once\n"))
    with agent.session() as first, agent.session() as second:
        for number in range(5):
            ask(first, number, "start", spec)
            ask(second, number, "start", spec)
        answers = [replies(first), replies(second)]
        said = [next(answer) for answer in answers for _ in range(5)]
    assert {code for _, code, _ in said} == {EXIT_OK}
    assert [reply["started"] for _, _, (reply,) in said].count(True) == 1
    agent.wait(spec)
    assert AttemptFiles(Path(spec.run_dir), 1).log.read_text() == "once\n"


def test_a_host_without_inotify_is_followed_all_the_same(
    agent: AgentClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watcher, "add", lambda *_: None)
    spec = agent.spec(script(tmp_path / "stage", "#!/bin/sh\necho done\n"))
    reader, writer = os.pipe()
    follower = Follower(writer)
    follower.watch(WatchRequest(run_dir=spec.run_dir, attempt=1))
    agent.call("start", spec)
    while len(follower):
        assert follower.wait_s() < 1.0, "it looks by itself"
        follower.round()
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read()
    assert b'"kind":"exit"' in said and b"done\n" in said


def test_the_end_of_an_attempt_is_noticed_without_a_look(
    agent: AgentClient, tmp_path: Path
) -> None:
    watcher = Watcher()
    if watcher.descriptor is None:
        pytest.fail("this machine has no inotify")
    folder = tmp_path / "attempt"
    assert watcher.add(folder) is None, "not there yet"
    folder.mkdir()
    number = watcher.add(folder)
    assert number is not None and watcher.changes() == set()
    (folder / "tmp").write_text("x")
    (folder / "tmp").rename(folder / "exit.json")
    changes = watcher.changes()
    assert changes is not None and (number, "exit.json") in changes
    watcher.drop(number)
    (folder / "log").write_text("x")
    assert watcher.changes() == set()
