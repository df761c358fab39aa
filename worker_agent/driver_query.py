"""Child processes that ask a GPU driver: a call into a driver that hangs never comes back, so it
is not made in a process that anybody waits for."""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_DIES_S = 0.5  # after SIGKILL; in an uninterruptible call it does not die at all


@dataclass(slots=True)
class Answer:
    lines: list[str]
    returncode: int | None  # None: it hung
    stuck: int | None = None  # pid of a child that not even SIGKILL ended

    @property
    def hung(self) -> bool:
        return self.returncode is None


class Child:
    """One that the kernel ends with the process that asks: a hung one would outlive it.

    Raises OSError when it cannot be started.
    """

    def __init__(self, command: Sequence[str], *, stderr: int = subprocess.DEVNULL) -> None:
        prctl = ctypes.CDLL(None).prctl  # looked up here: nothing is loaded between fork and exec
        self.output, writer = os.pipe()
        self.closed = False  # it will say no more
        self._said = bytearray()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=writer,
                stderr=stderr,
                preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
            )
        except BaseException:
            os.close(self.output)
            raise
        finally:
            os.close(writer)
        os.set_blocking(self.output, False)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        self._process.kill()

    def said(self) -> str:
        """All of its output until now."""
        try:
            while not self.closed:
                chunk = os.read(self.output, 1 << 16)
                self._said += chunk
                if not chunk:
                    self._close()
        except BlockingIOError:
            pass
        return self._said.decode(errors="replace")

    def end(self, patience_s: float = _DIES_S) -> Answer:
        """Its answer. It is killed unless it has closed its output: the last one to leave a GPU
        may have to shut it down, long after its last word."""
        lines = self.said().splitlines()
        finished = self.closed
        if not finished:
            self.kill()
            self._close()
        try:
            returncode = self._process.wait(max(patience_s, _DIES_S) if finished else _DIES_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return Answer(lines, None, self.pid)
        return Answer(lines, returncode if finished else None)

    def _close(self) -> None:
        self.closed = True
        os.close(self.output)


def ask(
    commands: Sequence[Sequence[str]], *, patience_s: float, stderr: int = subprocess.DEVNULL
) -> list[Answer]:
    """What each of `commands`, run at the same time, has printed. Raises OSError when one cannot
    be run."""
    return answers([Child(command, stderr=stderr) for command in commands], patience_s)


def answers(children: Sequence[Child], patience_s: float) -> list[Answer]:
    """One that is silent for `patience_s`, or not done after twice that, hangs."""
    began = time.monotonic()
    deadlines = dict.fromkeys(range(len(children)), began + patience_s)
    with selectors.DefaultSelector() as selector:
        for number, child in enumerate(children):
            selector.register(child.output, selectors.EVENT_READ, number)
        while deadlines:
            for key, _ in selector.select(max(0.0, min(deadlines.values()) - time.monotonic())):
                child, number = children[key.data], key.data
                selector.unregister(key.fd)
                child.said()
                if child.closed:
                    del deadlines[number]
                else:
                    selector.register(key.fd, selectors.EVENT_READ, number)
                    now = time.monotonic()
                    deadlines[number] = min(now, began + patience_s) + patience_s
            for number, deadline in [*deadlines.items()]:
                if deadline <= time.monotonic():
                    selector.unregister(children[number].output)
                    del deadlines[number]
    return [child.end(patience_s) for child in children]
