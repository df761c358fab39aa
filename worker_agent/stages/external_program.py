"""A program that is not ours: started in a group of its own, heard, and ended with all it began."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from worker_agent.messages import FailureCode
from worker_agent.stages.api import Reporter, StageFailure

__all__ = ["Ran", "failed", "run_program"]

GRACE_S = 5.0  # between TERM and KILL of what the program leaves running
_TAIL = 20  # lines of its output kept for the message
_POLL_S = 0.5
_MEMORY_SIGNS = ("CUDA out of memory", "CUDA error: out of memory", "OutOfMemoryError")
# Ours: they would hide what lies beside the program, and show it modules of ours.
_NOT_PASSED_ON = ("PYTHONPATH", "PYTHONSAFEPATH")


@dataclass(frozen=True, slots=True)
class Ran:
    """How it ended. `returncode` is None where it was not waited for, as `done` said it is done."""

    program: str
    returncode: int | None
    in_time: bool
    tail: tuple[str, ...]  # last lines of its output

    @property
    def said(self) -> str:
        return self.tail[-1][:300] if self.tail else "no message"


def run_program(
    argv: Sequence[str],
    work: Path,
    timeout_s: float,
    report: Reporter,
    done: Callable[[], bool] = lambda: False,
) -> Ran:
    """Run it in `work` to its end, to its timeout, or until `done`; then nothing of it is left.

    Lines {"fraction": ..., "message": ...} of its output are progress, others go to the log.
    Raises StageFailure TOOL_MISSING when it cannot be started.
    """
    try:
        # A group of its own, so that a viewer it opens ends with it. If this stage is killed, the
        # supervisor finds it by the attempt's cookie.
        child = subprocess.Popen(
            list(argv),
            cwd=work,
            env={k: v for k, v in os.environ.items() if k not in _NOT_PASSED_ON},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    except OSError as error:
        raise StageFailure(
            FailureCode.TOOL_MISSING,
            f"{argv[0]} cannot be started: {error.strerror}",
            advice="Install the program on the host, or give its full path in reconstruct.",
        ) from None
    if child.stdout is None:
        raise RuntimeError("the program was started without a pipe")
    deadline = time.monotonic() + timeout_s
    tail: deque[str] = deque(maxlen=_TAIL)
    try:
        returncode, in_time = _follow(child, child.stdout, deadline, report, tail, done)
    finally:
        _end_group(child)
    return Ran(argv[0], returncode, in_time, tuple(tail))


def _follow(
    child: subprocess.Popen[bytes],
    stream: IO[bytes],
    deadline: float,
    report: Reporter,
    tail: deque[str],
    done: Callable[[], bool],
) -> tuple[int | None, bool]:
    """Until the program itself has ended, even if what it started holds its output open."""
    buffer = b""
    os.set_blocking(stream.fileno(), False)
    looked = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            ended = child.poll() is not None
            block = b""
            if selector.select(0 if ended else _POLL_S):
                block = os.read(stream.fileno(), 65536)
                *lines, buffer = (buffer + block).split(b"\n")
                for line in lines:
                    _line(line.decode(errors="replace"), report, tail)
                if not block and not ended:  # it closed its output and works on
                    selector.unregister(stream)
                    time.sleep(_POLL_S)
            if ended and not block:
                if buffer:
                    _line(buffer.decode(errors="replace"), report, tail)
                return child.returncode, True
            now = time.monotonic()
            if now > deadline and not ended:
                return None, False
            if now - looked >= _POLL_S:
                looked = now
                if done():
                    return None, True


def _line(text: str, report: Reporter, tail: deque[str]) -> None:
    """One line of its output: progress, or words for the log."""
    try:
        told = json.loads(text)
        fraction = float(told["fraction"])
    except (ValueError, TypeError, KeyError):
        if text.strip():
            tail.append(text.strip())
            print(text, flush=True)
        return
    report.progress(min(0.99, max(0.0, fraction)), str(told.get("message", ""))[:200])


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """What is left of the program and of what it started."""
    for sign, patience in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        try:
            os.killpg(child.pid, sign)
        except ProcessLookupError:
            break
        until = time.monotonic() + patience
        while time.monotonic() < until:
            child.poll()
            try:
                os.killpg(child.pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.05)
    child.wait()


def failed(ran: Ran, timeout_s: float, how: str, advice: str) -> StageFailure:
    """Why it left nothing of use: too late, without memory, or `how` it ended otherwise."""
    if not ran.in_time:
        return StageFailure(
            FailureCode.STAGE_TIMEOUT,
            f"{ran.program} did not end within {timeout_s:g} s: {ran.said}",
            advice="Raise reconstruct.timeout_s, or let the program do less.",
        )
    if ran.returncode and any(sign in line for line in ran.tail for sign in _MEMORY_SIGNS):
        return StageFailure(
            FailureCode.GPU_OUT_OF_MEMORY,
            f"{ran.program} ran out of GPU memory: {ran.said}",
            advice="Use a GPU with more memory, or let the program do less.",
        )
    return StageFailure(
        FailureCode.STAGE_CRASHED,
        f"{ran.program} {how}: {ran.said}",
        advice=advice,
        evidence={"exit": ran.returncode, "output": list(ran.tail)},
    )
