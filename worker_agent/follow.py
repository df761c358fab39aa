"""Follows attempts: every event and log byte of many attempts, once, on one stream; of a log that
is very long, its middle is left out (worker_agent.kept_log).

Reading is by byte offset, so that whoever lost the stream goes on where it broke. The end of an
attempt is told at once; what it writes is gathered for a moment, so that a talkative stage does not
cost a frame a line.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from worker_agent import attempts
from worker_agent.attempts import AttemptFiles
from worker_agent.durable import write_all
from worker_agent.inotify import Watcher
from worker_agent.kept_log import read_from, read_log
from worker_agent.protocol import AttemptState, AttemptStatus, FrameHeader, WatchRequest

_GATHER_S = 1.0
_LIVENESS_S = 1.0  # how often the lock is probed: an end that leaves no record tells nobody
# Where directories cannot be watched: how often they are looked at, ever more slowly.
_FASTEST_S, _SLOWEST_S, _BACK_OFF = 0.02, 0.2, 1.3
_FRAME_BYTES = 256 * 1024


@dataclass(slots=True)
class _Watch:
    files: AttemptFiles
    events_at: int
    log_at: int
    number: int | None  # of the directory, for the Watcher
    due: float = 0.0  # monotonic: when to look next
    interval: float = _FASTEST_S  # where the directory cannot be watched
    probed: float = float("-inf")


class Follower:
    """One pass over the attempts that have something new per `round`; frames go to the descriptor
    `output`. `descriptor` becomes readable when there is something to `notice`."""

    def __init__(self, output: int) -> None:
        self._output = output
        self._watches: dict[tuple[str, int], _Watch] = {}
        self._watcher = Watcher()

    @property
    def descriptor(self) -> int | None:
        return self._watcher.descriptor

    def __len__(self) -> int:
        return len(self._watches)

    def watch(self, request: WatchRequest) -> None:
        """Begin, or begin again, at the offsets given, and say so at once: an attempt may have
        nothing new to tell for minutes. Raises RefusedError for a bad run_dir."""
        files = AttemptFiles.of(request.run_dir, request.attempt)
        key = (request.run_dir, request.attempt)
        self._forget(key)
        number = self._watcher.add(files.directory)
        self._watches[key] = watch = _Watch(files, request.events_from, request.log_from, number)
        if number is not None and not files.exit.exists():
            watch.due = time.monotonic() + _GATHER_S
        self._send(self._header("heartbeat", watch, 0, 0), b"")

    def heartbeat(self) -> None:
        self._send(FrameHeader(kind="heartbeat"), b"")

    def notice(self) -> None:
        """Take in which attempts wrote something."""
        changes = self._watcher.changes()
        now = time.monotonic()
        for watch in self._watches.values():
            if changes is None or (watch.number, watch.files.exit.name) in changes:
                watch.due = now
            elif any((watch.number, path.name) in changes for path in _streams(watch.files)):
                watch.due = min(watch.due, now + _GATHER_S)

    def wait_s(self) -> float:
        """Seconds until some attempt is to be looked at; infinite when none is followed."""
        due = min((watch.due for watch in self._watches.values()), default=float("inf"))
        return max(0.0, due - time.monotonic())

    def round(self) -> None:
        """Send what is new of those that are due."""
        for key, watch in list(self._watches.items()):
            now = time.monotonic()
            if watch.due > now:
                continue
            # Looked at before the files are read: what is read after the end is all there is.
            ended = self._ended(watch, now)
            pumped = self._pump(watch, over=ended is not None)
            # No more than a few frames a round: one long log must not silence the others.
            if ended is not None and not (pumped and self._pump(watch, over=True)):
                body = ended.to_json().encode()
                self._send(self._header("exit", watch, 0, len(body)), body)
                self._forget(key)
                continue
            watch.due = now if ended is not None else self._next_look(watch, pumped, now)

    def _next_look(self, watch: _Watch, pumped: int, now: float) -> float:
        if pumped >= _FRAME_BYTES:
            return now  # there is more
        if watch.number is None:
            watch.number = self._watcher.add(watch.files.directory)  # it may be there by now
            watch.interval = _FASTEST_S if pumped else min(_SLOWEST_S, watch.interval * _BACK_OFF)
            return now + watch.interval
        return now + _LIVENESS_S

    def _forget(self, key: tuple[str, int]) -> None:
        known = self._watches.pop(key, None)
        if known is not None and known.number is not None:
            self._watcher.drop(known.number)

    def _ended(self, watch: _Watch, now: float) -> AttemptStatus | None:
        if not watch.files.exit.exists():
            if now - watch.probed < _LIVENESS_S:
                return None
            watch.probed = now
        status = attempts.status(watch.files)
        over = status.state in (AttemptState.FINISHED, AttemptState.VANISHED)
        return status if over else None

    def _pump(self, watch: _Watch, *, over: bool) -> int:
        """Bytes sent."""
        events = _read_lines(watch.files.events, watch.events_at)
        if events:
            self._send(self._header("events", watch, watch.events_at, len(events)), events)
            watch.events_at += len(events)
        log = read_log(watch.files.log, watch.log_at, _FRAME_BYTES, over=over)
        if log:
            self._send(self._header("log", watch, watch.log_at, len(log)), log)
            watch.log_at += len(log)
        return len(events) + len(log)

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
        write_all(self._output, header.to_json().encode() + b"\n" + body)


def _streams(files: AttemptFiles) -> tuple[Path, Path]:
    return files.events, files.log


def _read_lines(path: Path, offset: int) -> bytes:
    """Whole lines only; a line longer than a frame still goes out in one."""
    limit = _FRAME_BYTES
    while True:
        data = read_from(path, offset, limit)
        end = data.rfind(b"\n") + 1
        if end or len(data) < limit:
            return data[:end]
        limit *= 2
