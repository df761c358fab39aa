"""Disk space set aside for one attempt before it runs: a full disk must not make it look lost.

Each reserve is a preallocated file that becomes the file it is for, or gives its blocks to it.
"""

from __future__ import annotations

import os

from worker_agent.attempts import AttemptFiles
from worker_agent.messages import FailureCode
from worker_agent.refusal import failed, is_disk_full

# What each record may need. A longer exit record or result leaves out its evidence and metrics.
RESERVE_BYTES = {
    "exit": 64 * 1024,
    "result": 64 * 1024,
    "checkpoint": 128 * 1024,
    "events": 64 * 1024,
    "cancel": 4 * 1024,
}


def make_reserves(files: AttemptFiles) -> None:
    """Preallocate all of them, and make the files that will be appended to.

    Raises RefusedError (disk_full) when they do not fit, and leaves none behind.
    """
    try:
        for path in (files.events, files.log):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        for name, size in RESERVE_BYTES.items():
            descriptor = os.open(
                files.reserve(name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644
            )
            try:
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)
    except OSError as error:
        drop_reserves(files)
        if not is_disk_full(error):
            raise
        total = sum(RESERVE_BYTES.values())
        raise failed(
            FailureCode.DISK_FULL,
            f"{files.directory}: no room for the {total} bytes an attempt's own records need: "
            "free space on this host",
        ) from None


def drop_reserves(files: AttemptFiles) -> None:
    for name in RESERVE_BYTES:
        files.reserve(name).unlink(missing_ok=True)
