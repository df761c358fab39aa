"""Ends a stage whose supervisor has died once its lease runs out. Stdlib only.

The supervisor normally does that. Killed alone, it leaves a stage that nobody would ever stop,
while the dispatcher rightly counts on the lease.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from worker_agent import attempts, clock
from worker_agent.attempts import AttemptFiles

_PERIOD_S = 1.0


def guard(files: AttemptFiles) -> None:
    """Watch from a daemon thread; kills the stage's whole process group."""
    threading.Thread(target=_watch, args=(files, os.getppid()), daemon=True).start()


def _watch(files: AttemptFiles, supervisor: int) -> None:
    while True:
        time.sleep(_PERIOD_S)
        if os.getppid() == supervisor:
            continue
        lease = attempts.read_json(files.lease) or {}
        if clock.boottime() > float(lease.get("until", 0.0)) or files.cancel.exists():
            os.killpg(os.getpgrp(), signal.SIGKILL)
