"""One verb at a time changes what lies in a run directory.

A dispatcher that was killed leaves its verbs at work: what its successor brings must not vanish
under the removal that the first one had begun.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker_agent.refusal import RefusedError


@contextmanager
def alone(run_dir: Path) -> Iterator[None]:
    """Raises RefusedError (busy) while another process is in here."""
    run_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RefusedError("busy", f"{run_dir}: another transfer or removal runs: wait") from None
    try:
        yield
    finally:
        os.close(descriptor)
