"""What a session follows: every event and log byte once, across any number of broken streams."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent_client import AgentClient, Session, script
from worker_agent import kept_log
from worker_agent.attempts import AttemptFiles
from worker_agent.protocol import AttemptSpec, AttemptState, AttemptStatus, FrameHeader

WRITES = f"""#!{sys.executable}
import os, sys
events = int(os.environ["COSMA_EVENTS_FD"])
for number in range(20000):
    line = '{{"kind":"progress","number":%d,"message":"%s"}}\\n' % (number, "x" * (number % 90))
    os.write(events, line.encode())
    os.write(1, b"log line %d without structure \\xff\\n" % number)
os.write(1, b"no line end")
"""


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentClient]:
    client = AgentClient(tmp_path / "work")
    yield client
    client.end_all()


class Gathered:
    """Bytes by kind, each frame checked to begin where the one before it ended."""

    def __init__(self) -> None:
        self.data = {"events": bytearray(), "log": bytearray()}
        self.exits: list[AttemptStatus] = []

    def take(self, header: FrameHeader, body: bytes) -> None:
        if header.kind == "exit":
            self.exits.append(AttemptStatus.from_json(body))
        elif header.kind in self.data:
            assert not self.exits, "nothing comes after the exit frame"
            assert header.offset == len(self.data[header.kind])
            assert header.kind != "events" or body.endswith(b"\n")
            self.data[header.kind] += body

    def attach(self, session: Session, spec: AttemptSpec) -> None:
        session.watch(spec, len(self.data["events"]), len(self.data["log"]))


def test_every_byte_once_across_broken_streams(agent: AgentClient, tmp_path: Path) -> None:
    spec = agent.spec(script(tmp_path / "writes", WRITES))
    gathered, cuts, chance = Gathered(), 0, random.Random(4)
    agent.call("start", spec)
    while not gathered.exits:
        frames_left = chance.randint(1, 4)
        with agent.session() as session:
            gathered.attach(session, spec)
            for header, body in session.frames():
                gathered.take(header, body)
                frames_left -= 1
                if gathered.exits or frames_left == 0:
                    break
        cuts += 1
    files = AttemptFiles(Path(spec.run_dir), 1)
    assert cuts > 2
    assert bytes(gathered.data["events"]) == files.events.read_bytes()
    assert bytes(gathered.data["log"]) == files.log.read_bytes()
    assert gathered.data["events"].count(b"\n") == 20002
    (over,) = gathered.exits
    assert over.state is AttemptState.FINISHED
    assert over.exit is not None
    assert over.exit.events_bytes == len(gathered.data["events"])
    assert over.exit.log_bytes == len(gathered.data["log"])


def test_a_stage_that_prints_without_end_fills_neither_disk_nor_stream(
    agent: AgentClient, tmp_path: Path
) -> None:
    lines = 3 * kept_log.HEAD_BYTES // 64
    spec = agent.spec(script(tmp_path / "prints", f"#!/bin/sh\nseq -f %063.0f {lines}\n"))
    gathered = Gathered()
    agent.call("start", spec)
    with agent.session() as session:
        gathered.attach(session, spec)
        for header, body in session.frames():
            gathered.take(header, body)
            if gathered.exits:
                break
    text = bytes(gathered.data["log"])
    left_out = lines * 64 - kept_log.HEAD_BYTES - kept_log.TAIL_BYTES
    assert text.startswith(b"%063d\n" % 1) and text.endswith(b"%063d\n" % lines)
    assert b"\n[cosma: %d bytes of this log are left out here]\n" % left_out in text
    facts = AttemptFiles(Path(spec.run_dir), 1).log.stat()
    assert facts.st_size == lines * 64
    assert facts.st_blocks * 512 < facts.st_size - left_out // 2


def test_one_stream_for_many_attempts_and_later_watches(agent: AgentClient, tmp_path: Path) -> None:
    stage = script(
        tmp_path / "says", '#!/bin/sh\nread line < go\necho "$COSMA_ATTEMPT says $line"\n'
    )
    specs = []
    for name in ("a-1", "b-1", "c-1"):
        run_dir = agent.work_dir / "reef" / name
        run_dir.mkdir(parents=True)
        os.mkfifo(run_dir / "go")
        specs.append(agent.spec(stage, run_dir=str(run_dir), job=name))
    gathered = {spec.run_dir: Gathered() for spec in specs}
    with agent.session() as session:
        session.watch(specs[2])  # before it is started: waits for it
        for spec in specs:
            agent.call("start", spec)
            (Path(spec.run_dir) / "go").write_text("hello\n")
        stream = session.frames()
        for header, body in stream:
            if header.kind == "heartbeat":
                continue
            gathered[header.run_dir].take(header, body)
            if header.kind == "exit" and header.run_dir == specs[2].run_dir:
                for spec in specs[:2]:
                    gathered[spec.run_dir].attach(session, spec)
            if all(item.exits for item in gathered.values()):
                break
        session.requests.close()
        assert [header.kind for header, _ in stream if header.kind != "heartbeat"] == []
        assert session.process.wait() == 0
    for spec in specs:
        assert bytes(gathered[spec.run_dir].data["log"]).decode() == (
            f"{spec.run_dir}#1 says hello\n"
        )


def test_heartbeat_comes_without_any_watch(agent: AgentClient) -> None:
    with agent.session() as session:
        header, body = next(session.frames())
    assert (header.kind, body) == ("heartbeat", b"")


def test_a_watch_is_answered_at_once_though_the_attempt_has_nothing_to_say(
    agent: AgentClient, tmp_path: Path
) -> None:
    spec = agent.spec(script(tmp_path / "never-started", WRITES))
    with agent.session() as session:
        session.watch(spec)
        header, body = next(session.frames())
    assert (header.kind, body) == ("heartbeat", b"")
    assert (header.run_dir, header.attempt) == (spec.run_dir, spec.attempt)


def test_line_that_is_no_request_ends_it_with_one_refusal(agent: AgentClient) -> None:
    answer = agent.call("session", b"nonsense\n")
    assert (answer.code, answer.one["error"]) == (3, "bad_request")
    assert answer.stderr == ""
