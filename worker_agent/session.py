"""The verb `session`: one process of the agent for as long as a dispatcher's connection stands.

Calls come on stdin at any time, frames go to stdout, the process ends with stdin. A call runs in a
fork of this process: the code of the one-shot verb with nothing left to start or to import, and one
that hangs, fails or is killed takes nothing with it. `watch` begins to follow an attempt
(worker_agent.follow). What a call started outlives the session, as it outlives its own verb.
"""

from __future__ import annotations

import gc
import os
import select
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from worker_agent.durable import write_all
from worker_agent.follow import Follower
from worker_agent.processes import close_all_but
from worker_agent.protocol import (
    EXIT_FAILED,
    EXIT_USAGE,
    CallHeader,
    FrameHeader,
    ProtocolError,
    WatchRequest,
)
from worker_agent.refusal import RefusedError
from worker_agent.version import archive_path

Run = Callable[[str], int]  # runs a verb on stdin and stdout, returns its exit code

WATCH = "watch"
_BUSY_HEARTBEAT_S = 5.0  # while something is followed, or a call is not answered
_IDLE_HEARTBEAT_S = 20.0
_BLOCK = 256 * 1024
# Neither what a finished job left nor a hash for the record takes a core from a stage that runs.
_UNHURRIED = frozenset({"reclaim", "digest", "prune"})
_NICE = 10


@dataclass(slots=True)
class _Call:
    number: int
    pid: int
    said: bytearray = field(default_factory=bytearray)


def session(source: int, output: int, run: Run, load: Callable[[], None]) -> None:
    """Until `source` ends. `load` reads the code of the verbs, before the first of them. Raises
    RefusedError for what is neither a call nor its bytes, and when the agent's own file is gone:
    whoever called puts it back and calls again."""
    _Session(source, output, run, load).serve()


class _Session:
    def __init__(self, source: int, output: int, run: Run, load: Callable[[], None]) -> None:
        self._source = source
        self._output = output
        self._run = run
        self._load: Callable[[], None] | None = load
        self._follower = Follower(output)
        self._calls: dict[int, _Call] = {}  # by the descriptor their answer comes from
        self._pending = bytearray()
        self._poll = select.poll()
        self._archive = archive_path()

    def serve(self) -> None:
        self._poll.register(self._source, select.POLLIN | select.POLLHUP)
        if self._follower.descriptor is not None:
            self._poll.register(self._follower.descriptor, select.POLLIN)
        beat = float("-inf")  # the first one says that we are here
        while True:
            every = _BUSY_HEARTBEAT_S if self._follower or self._calls else _IDLE_HEARTBEAT_S
            left = max(0.0, beat + every - time.monotonic())
            for descriptor, _ in self._poll.poll(1000 * min(left, self._follower.wait_s())):
                if descriptor == self._source:
                    data = os.read(self._source, _BLOCK)
                    if not data:
                        return
                    self._take(data)
                elif descriptor == self._follower.descriptor:
                    self._follower.notice()
                else:
                    self._listen(descriptor)
            self._follower.round()
            if time.monotonic() - beat >= every:
                beat = time.monotonic()
                self._follower.heartbeat()

    def _take(self, data: bytes) -> None:
        self._pending += data
        asked: list[tuple[CallHeader, bytes]] = []
        while (end := self._pending.find(b"\n") + 1) > 0:
            try:
                header = CallHeader.from_json(bytes(self._pending[:end]))
            except ProtocolError as error:
                raise RefusedError("bad_request", str(error)) from None
            if len(self._pending) < end + header.bytes:
                break
            asked.append((header, bytes(self._pending[end : end + header.bytes])))
            del self._pending[: end + header.bytes]
        # A dispatcher that comes back is told first what it can follow: that costs next to nothing.
        for header, body in sorted(asked, key=lambda item: item[0].verb != WATCH):
            self._begin(header, body)

    def _begin(self, header: CallHeader, body: bytes) -> None:
        if self._archive is not None and not self._archive.exists():
            raise RefusedError(
                "agent_failed", f"can't open file {self._archive}", exit_code=EXIT_USAGE
            )
        if header.verb == WATCH:
            try:
                self._follower.watch(WatchRequest.from_json(body))
            except ProtocolError as error:
                raise RefusedError("bad_request", str(error)) from None
            return
        if self._load is not None:
            self._load()
            self._load = None
            gc.freeze()  # none of it is ever garbage: a fork need not copy it to find that out
        source = os.memfd_create("cosma-call", os.MFD_CLOEXEC)
        write_all(source, body)
        os.lseek(source, 0, os.SEEK_SET)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._become(header.verb, source, writer)
        os.close(source)
        os.close(writer)
        self._calls[reader] = _Call(header.call, pid)
        self._poll.register(reader, select.POLLIN | select.POLLHUP)

    def _become(self, verb: str, source: int, output: int) -> NoReturn:
        # Whatever happens here, this copy of the process must never return into the session.
        code = EXIT_FAILED
        try:
            os.dup2(source, 0)
            os.dup2(output, 1)
            close_all_but(0, 1, 2)
            if verb in _UNHURRIED:
                os.nice(_NICE)
            code = self._run(verb)
            sys.stdout.flush()
        finally:
            os._exit(code)

    def _listen(self, descriptor: int) -> None:
        call = self._calls[descriptor]
        data = os.read(descriptor, _BLOCK)
        call.said += data
        if data:
            return
        self._poll.unregister(descriptor)
        os.close(descriptor)
        del self._calls[descriptor]
        _, status = os.waitpid(call.pid, 0)
        header = FrameHeader(
            kind="reply",
            call=call.number,
            code=os.waitstatus_to_exitcode(status),
            bytes=len(call.said),
        )
        write_all(self._output, header.to_json().encode() + b"\n" + bytes(call.said))
