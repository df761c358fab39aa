"""From a file back to the job that made it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path, PurePosixPath

from dispatcher.executors.transfer import file_sha256
from dispatcher.store.base import Store
from dispatcher.store.rows import ArtifactRow

_HASH = re.compile(r"[0-9a-f]{8,64}")


async def makers(store: Store, asked: str) -> list[ArtifactRow]:
    """`asked`: a SHA-256 or its beginning, a path in the artifact directory, a URL in the object
    store, a path on a host, or any file here whose content a job has made."""
    if _HASH.fullmatch(asked):
        rows = await store.artifacts(sha256=asked if len(asked) == 64 else None)
        return [row for row in rows if row.sha256.startswith(asked)]
    here = await asyncio.to_thread(lambda: Path(asked).expanduser().absolute())
    for path in (asked, str(here)):
        if rows := await store.artifacts(path=path):
            return rows
    if rows := await _on_a_host(store, asked):
        return rows
    try:
        return await store.artifacts(sha256=await asyncio.to_thread(file_sha256, here))
    except OSError:
        return []  # it is no file here


async def _on_a_host(store: Store, asked: str) -> list[ArtifactRow]:
    """`<work_dir>/<acquisition>/<job>/<path>`, with or without the host before it."""
    parts = PurePosixPath(asked.partition(":")[2] or asked).parts
    for at, name in enumerate(parts[1:-1], start=1):
        rows = await store.artifacts(job=name, acquisition=parts[at - 1])
        path = "/".join(parts[at + 1 :])
        if found := [row for row in rows if row.path == path]:
            return found
    return []
