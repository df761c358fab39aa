"""The verb `follow`: every event and log byte of many attempts, once, on one stream.

Watch requests come on stdin at any time, frames go to stdout; the stream ends with stdin. Reading
is by byte offset, so that whoever lost the stream goes on where it broke.
"""

from __future__ import annotations

import os
import select
import time
from dataclasses import dataclass
from pathlib import Path

from worker_agent import attempts
from worker_agent.attempts import AttemptFiles
from worker_agent.protocol import (
    AttemptState,
    AttemptStatus,
    FrameHeader,
    ProtocolError,
    WatchRequest,
)
from worker_agent.refusal import RefusedError

HEARTBEAT_S = 5.0
_FASTEST_S = 0.02
_SLOWEST_S = 0.2
_BACK_OFF = 1.3
_LIVENESS_S = 1.0  # how often the lock is probed; exit.json is looked for on every round
_FRAME_BYTES = 256 * 1024


@dataclass(slots=True)
class _Watch:
    files: AttemptFiles
    events_at: int
    log_at: int
    probed: float = float("-inf")


class Follower:
    """One pass over all watched attempts per `round`; frames go to the descriptor `output`."""

    def __init__(self, output: int) -> None:
        self._output = output
        self._watches: dict[tuple[str, int], _Watch] = {}

    def watch(self, request: WatchRequest) -> None:
        """Begin, or begin again, at the offsets given. Raises RefusedError for a bad run_dir."""
        files = AttemptFiles.of(request.run_dir, request.attempt)
        key = (request.run_dir, request.attempt)
        self._watches[key] = _Watch(files, request.events_from, request.log_from)

    def heartbeat(self) -> None:
        self._send(FrameHeader(kind="heartbeat"), b"")

    def round(self) -> bool:
        """Send what is new; True when anything was."""
        sent = False
        for key, watch in list(self._watches.items()):
            # Looked at before the files are read: what is read after the end is all there is.
            ended = self._ended(watch)
            pumped = self._pump(watch)
            sent |= pumped
            # One frame a round: a log of gigabytes must not silence the other attempts.
            if ended is not None and not pumped:
                body = ended.to_json().encode()
                self._send(self._header("exit", watch, 0, len(body)), body)
                del self._watches[key]
                sent = True
        return sent

    def _ended(self, watch: _Watch) -> AttemptStatus | None:
        now = time.monotonic()
        if not watch.files.exit.exists():
            if now - watch.probed < _LIVENESS_S:
                return None
            watch.probed = now
        status = attempts.status(watch.files)
        over = status.state in (AttemptState.FINISHED, AttemptState.VANISHED)
        return status if over else None

    def _pump(self, watch: _Watch) -> bool:
        events = _read_lines(watch.files.events, watch.events_at)
        if events:
            self._send(self._header("events", watch, watch.events_at, len(events)), events)
            watch.events_at += len(events)
        log = _read(watch.files.log, watch.log_at, _FRAME_BYTES)
        if log:
            self._send(self._header("log", watch, watch.log_at, len(log)), log)
            watch.log_at += len(log)
        return bool(events or log)

    @staticmethod
    def _header(kind: str, watch: _Watch, offset: int, size: int) -> FrameHeader:
        return FrameHeader(
            kind=kind,
            run_dir=str(watch.files.run_dir),
            attempt=watch.files.attempt,
            offset=offset,
            bytes=size,
        )

    def _send(self, header: FrameHeader, body: bytes) -> None:
        data = memoryview(header.to_json().encode() + b"\n" + body)
        while data:
            data = data[os.write(self._output, data) :]


def _read(path: Path, offset: int, limit: int) -> bytes:
    try:
        if path.stat().st_size <= offset:
            return b""
        with path.open("rb", buffering=0) as stream:
            stream.seek(offset)
            return stream.read(limit)
    except (FileNotFoundError, NotADirectoryError):
        return b""


def _read_lines(path: Path, offset: int) -> bytes:
    """Whole lines only; a line longer than a frame still goes out in one."""
    limit = _FRAME_BYTES
    while True:
        data = _read(path, offset, limit)
        end = data.rfind(b"\n") + 1
        if end or len(data) < limit:
            return data[:end]
        limit *= 2


def follow(source: int, output: int) -> None:
    """Until `source` ends. Raises RefusedError for a line that is not a WatchRequest."""
    follower = Follower(output)
    pending = b""
    interval = _FASTEST_S
    beat = time.monotonic()
    poller = select.poll()
    poller.register(source, select.POLLIN | select.POLLHUP)
    while True:
        if poller.poll(interval * 1000):
            data = os.read(source, 65536)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                if line.strip():
                    follower.watch(_request(line))
            interval = _FASTEST_S
        interval = _FASTEST_S if follower.round() else min(_SLOWEST_S, interval * _BACK_OFF)
        if time.monotonic() - beat >= HEARTBEAT_S:
            beat = time.monotonic()
            follower.heartbeat()


def _request(line: bytes) -> WatchRequest:
    try:
        return WatchRequest.from_json(line)
    except ProtocolError as error:
        raise RefusedError("bad_request", str(error)) from None
