"""Drives the agent as the dispatcher does: one process a verb, JSON lines on stdin and stdout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.conftest import REPOSITORY
from worker_agent.attempts import list_attempts
from worker_agent.protocol import (
    PROTOCOL_VERSION,
    AttemptSpec,
    AttemptState,
    AttemptStatus,
    CallHeader,
    CancelRequest,
    FrameHeader,
    Message,
    WatchRequest,
)

SOURCE_COMMAND = (sys.executable, "-m", "worker_agent")


def _as_of_sshd() -> None:
    """Signals as sshd leaves them: whoever runs the tests may ignore some (nohup)."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@dataclass(frozen=True, slots=True)
class Answer:
    code: int
    lines: list[dict[str, Any]]
    stderr: str

    @property
    def one(self) -> dict[str, Any]:
        assert len(self.lines) == 1, (self.lines, self.stderr)
        return self.lines[0]


@dataclass(frozen=True, slots=True)
class AgentClient:
    """`command` runs the agent; the source tree by default."""

    work_dir: Path
    command: tuple[str, ...] = SOURCE_COMMAND
    environment: dict[str, str] = field(
        default_factory=lambda: {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )

    def spawn(self, verb: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self.command, verb],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
            preexec_fn=_as_of_sshd,
        )

    def call(self, verb: str, request: Message | bytes, body: bytes = b"") -> Answer:
        line = request if isinstance(request, bytes) else request.to_json().encode() + b"\n"
        with self.spawn(verb) as process:
            out, err = process.communicate(line + body, timeout=300)
        lines = [json.loads(part) for part in out.splitlines()]
        return Answer(process.returncode, lines, err.decode())

    def spec(self, stage_python: Path | str | None, **changes: Any) -> AttemptSpec:
        values: dict[str, Any] = {
            "protocol": PROTOCOL_VERSION,
            "epoch": 1,
            "acquisition": "reef",
            "job": "a-1",
            "attempt": 1,
            "stage": "Validation",
            "run_dir": str(self.work_dir / "reef" / "a-1"),
            "stage_python": None if stage_python is None else str(stage_python),
        }
        return AttemptSpec(**{**values, **changes})

    @contextmanager
    def session(self) -> Iterator[Session]:
        process = self.spawn("session")
        assert process.stdin is not None and process.stdout is not None
        try:
            yield Session(process, process.stdin, process.stdout)
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def end_all(self) -> None:
        """Cancel what still runs: a test that failed half-way must leave no process."""
        for item in list_attempts(self.work_dir):
            if item.state in (AttemptState.RUNNING, AttemptState.VANISHED):
                request = CancelRequest(
                    epoch=1 << 62, run_dir=item.run_dir, attempt=item.attempt, grace_s=0.0
                )
                self.call("cancel", request)

    def wait(self, spec: AttemptSpec) -> AttemptStatus:
        """Until the attempt is over, told by its session."""
        with self.session() as session:
            session.watch(spec)
            for header, body in session.frames():
                if header.kind == "exit":
                    return AttemptStatus.from_json(body)
        raise AssertionError("the session ended before the attempt")


@dataclass(frozen=True, slots=True)
class Session:
    process: subprocess.Popen[bytes]
    requests: IO[bytes]
    stream: IO[bytes]

    def send(self, call: int, verb: str, body: bytes) -> None:
        header = CallHeader(call=call, verb=verb, bytes=len(body))
        self.requests.write(header.to_json().encode() + b"\n" + body)
        self.requests.flush()

    def watch(self, spec: AttemptSpec, events_from: int = 0, log_from: int = 0) -> None:
        request = WatchRequest(
            run_dir=spec.run_dir,
            attempt=spec.attempt,
            events_from=events_from,
            log_from=log_from,
        )
        self.send(0, "watch", request.to_json().encode())

    def frames(self) -> Iterator[tuple[FrameHeader, bytes]]:
        """Complete frames only, until the stream ends."""
        while line := self.stream.readline():
            header = FrameHeader.from_json(line)
            body = self.stream.read(header.bytes)
            if len(body) < header.bytes:
                return
            yield header, body


def script(path: Path, text: str) -> Path:
    """An executable that stands where the stages' Python interpreter would."""
    path.write_text(text)
    path.chmod(0o755)
    return path
