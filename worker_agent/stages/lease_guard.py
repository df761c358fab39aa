"""Ends a stage whose supervisor has died once its lease runs out. Stdlib only.

The supervisor normally does that. Killed alone, it leaves a stage that nobody would ever stop,
while the dispatcher rightly counts on the lease.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from worker_agent import attempts, clock, processes
from worker_agent.attempts import AttemptFiles
from worker_agent.messages import AttemptSpec
from worker_agent.processes import SUPERVISOR, Scope

_PERIOD_S = 1.0


def guard(files: AttemptFiles, spec: AttemptSpec) -> None:
    """Watch from a daemon thread; it kills the whole attempt, itself last."""
    supervisor = int(os.environ.get(SUPERVISOR, os.getppid()))
    watch = _Watch(files, spec, supervisor, clock.boottime())
    threading.Thread(target=watch.run, daemon=True).start()


class _Watch:
    def __init__(
        self, files: AttemptFiles, spec: AttemptSpec, supervisor: int, began: float
    ) -> None:
        self._files = files
        self._supervisor = supervisor
        self._has_lease = spec.lease_s > 0
        self._lease_until = began + spec.lease_s
        self._ends_at = None if spec.timeout_s is None else began + spec.timeout_s

    def run(self) -> None:
        while True:
            time.sleep(_PERIOD_S)
            if os.getppid() == self._supervisor:
                continue
            cause = self._cause()
            if cause is not None:
                self._end(cause)

    def _cause(self) -> str | None:
        lease = attempts.read_json(self._files.lease) or {}
        self._lease_until = float(lease.get("until", self._lease_until))
        now = clock.boottime()
        if self._files.cancel.exists():
            return "cancelled"
        if self._has_lease and now > self._lease_until:
            return "lease_expired"
        if self._ends_at is not None and now > self._ends_at:
            return "timeout"
        return None

    def _end(self, cause: str) -> None:
        processes.sweep(Scope(self._files.run_dir, self._files.attempt), but=(os.getpid(),))
        try:
            record = attempts.ended_record(self._files, cause, clock.wall())
            if record is not None and not self._files.exit.exists():
                # This process holds the run lock until it is dead: nobody starts before that.
                attempts.write_exit(self._files, record)
        finally:
            os.killpg(os.getpgrp(), signal.SIGKILL)
