"""Training by a program of the operator's (`reconstruct.backend: command`); docs/backends.md is
its contract.

The program gets frames and the SfM model and leaves a PLY; what it made is measured like our own.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from worker_agent.messages import FailureCode
from worker_agent.stages.api import AttemptSpec, Reporter, StageFailure, write_json

__all__ = ["arguments", "run_program"]

GRACE_S = 5.0  # between TERM and KILL of what the program leaves running
_TAIL = 20  # lines of its output kept for the message
_POLL_S = 0.5
_MEMORY_SIGNS = ("CUDA out of memory", "CUDA error: out of memory", "OutOfMemoryError")
_PLACES = ("frames", "model", "output", "work", "job", "gpu")


def arguments(command: Sequence[str], places: Mapping[str, str]) -> list[str]:
    """The program's argv: each {name} of `places` filled in, nothing else touched.

    Raises StageFailure CONFIG_INVALID for an unknown {name}.
    """
    filled = []
    for word in command:
        for name in _PLACES:
            word = word.replace(f"{{{name}}}", places[name])
        filled.append(word)
    for given in command:
        rest = given
        for name in _PLACES:
            rest = rest.replace(f"{{{name}}}", "")
        if "{" in rest or "}" in rest:
            known = ", ".join(f"{{{name}}}" for name in _PLACES)
            raise StageFailure(
                FailureCode.CONFIG_INVALID,
                f"reconstruct.command holds {given!r}; known are {known}",
                advice="Correct reconstruct.command of the acquisition, then retry the job.",
            )
    return filled


def run_program(spec: AttemptSpec, report: Reporter, held_out: Sequence[str]) -> Path:
    """Run it to its end and return the PLY it left. `held_out`: names of the frames it is asked
    not to train on, as the result is measured on them.

    Raises StageFailure: CONFIG_INVALID, TOOL_MISSING, STAGE_TIMEOUT, GPU_OUT_OF_MEMORY,
    STAGE_CRASHED (it ended badly, or left nothing).
    """
    root = Path(spec.run_dir)
    config = spec.config["reconstruct"]
    work = root / "train" / "command"
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    places = {
        "frames": str(root / "frames"),
        "model": str(root / "sfm" / "model"),
        "output": str(work / "output.ply"),
        "work": str(work),
        "job": str(work / "job.json"),
        "gpu": spec.gpu or "",
    }
    train = spec.config.get("train", {})
    write_json(
        Path(places["job"]),
        {**places, "name": spec.job, "held_out": list(held_out), "train": train},
    )
    argv = arguments(config["command"], places)
    try:
        # A group of its own, so that a viewer it opens ends with it. If this stage is killed, the
        # supervisor finds it by the attempt's cookie.
        child = subprocess.Popen(
            argv,
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    except OSError as error:
        raise StageFailure(
            FailureCode.TOOL_MISSING,
            f"{argv[0]} of reconstruct.command cannot be started: {error.strerror}",
            advice="Install the program on the host, or give its full path.",
        ) from None
    if child.stdout is None:
        raise RuntimeError("the program was started without a pipe")
    deadline = time.monotonic() + float(config["timeout_s"])
    tail: deque[str] = deque(maxlen=_TAIL)
    try:
        in_time = _follow(child, child.stdout, deadline, report, tail)
    finally:
        _end_group(child)
    return _judged(child.returncode, in_time, argv[0], tail, Path(places["output"]), config)


def _follow(
    child: subprocess.Popen[bytes],
    stream: IO[bytes],
    deadline: float,
    report: Reporter,
    tail: deque[str],
) -> bool:
    """Until the program itself has ended, even if what it started holds its output open. False:
    it was still running at the deadline."""
    buffer = b""
    os.set_blocking(stream.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while True:
            ended = child.poll() is not None
            if selector.select(0 if ended else _POLL_S):
                block = os.read(stream.fileno(), 65536)
                *lines, buffer = (buffer + block).split(b"\n")
                for line in lines:
                    _line(line.decode(errors="replace"), report, tail)
                if block:
                    continue
                if not ended:  # it closed its output and works on
                    selector.unregister(stream)
                    time.sleep(_POLL_S)
            if ended:
                if buffer:
                    _line(buffer.decode(errors="replace"), report, tail)
                return True
            if time.monotonic() > deadline:
                return False


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


def _judged(
    returncode: int,
    in_time: bool,
    program: str,
    tail: Sequence[str],
    output: Path,
    config: Mapping[str, Any],
) -> Path:
    said = tail[-1][:300] if tail else "no message"
    if not in_time:
        raise StageFailure(
            FailureCode.STAGE_TIMEOUT,
            f"{program} did not end within {float(config['timeout_s']):g} s: {said}",
            advice="Raise reconstruct.timeout_s, or let the program do less.",
        )
    if returncode != 0 and any(sign in line for line in tail for sign in _MEMORY_SIGNS):
        raise StageFailure(
            FailureCode.GPU_OUT_OF_MEMORY,
            f"{program} ran out of GPU memory: {said}",
            advice="Use a GPU with more memory, or let the program do less.",
        )
    if returncode != 0 or not output.is_file() or output.stat().st_size == 0:
        how = f"ended with exit {returncode}" if returncode else f"left no {output.name}"
        raise StageFailure(
            FailureCode.STAGE_CRASHED,
            f"{program} {how}: {said}",
            advice="See the attempt's log; docs/backends.md says what a program must do.",
            evidence={"exit": returncode, "output": list(tail)},
        )
    return output
