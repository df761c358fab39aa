"""What all attempts of a job printed, as one text: the log that is kept with its results."""

from __future__ import annotations

import time
from collections.abc import Iterable

from dispatcher.store.base import Store
from dispatcher.store.rows import Attempt


async def job_log(store: Store, attempts: Iterable[Attempt]) -> bytes:
    """Each attempt of a job under a line that says which it is, byte for byte as its host sent
    it."""
    parts = []
    for attempt in attempts:
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(attempt.committed_at))
        head = f"=== attempt {attempt.attempt}: {attempt.stage} on {attempt.host}, {began}: "
        text = await store.logs(attempt.job, attempt.attempt) if attempt.log_bytes else b""
        end = b"" if text.endswith(b"\n") or not text else b"\n"
        parts.append(f"{head}{attempt.state} ===\n".encode() + text + end)
    return b"".join(parts)
