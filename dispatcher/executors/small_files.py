"""Many small files of a job in one call of `pack`; each is put in place when its hash agrees."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dispatcher.executors.agent import AgentLink
from dispatcher.executors.base import Wanted
from dispatcher.executors.transfer import SMALL, file_sha256, local_error
from worker_agent.protocol import PackedFile, PackItem, PackRequest

_FLUSHING = ThreadPoolExecutor(4, "cosma-flush")


async def collect(agent: AgentLink, run_dir: str, files: Sequence[Wanted]) -> list[Wanted]:
    """Returns those that are not here whole after all, to be collected one by one.

    Raises HostError, and TransferError when the disk here is full.
    """
    try:
        missing = await asyncio.to_thread(_missing, files)
        left: list[Wanted] = []
        for some in _portions(missing):
            items = tuple(PackItem(path=file.path, kind=file.kind) for file in some)
            done = await agent.ask("pack", PackRequest(run_dir=run_dir, items=items))
            agent.check("pack", done)
            found = _files(agent, done.stdout)
            left += await asyncio.to_thread(_keep, some, found)
    except OSError as error:
        raise local_error(agent.name, files[0].local, error) from None
    return left


def _portions(files: Iterable[Wanted]) -> Iterator[list[Wanted]]:
    """So much at a time that no event waits for long."""
    some: list[Wanted] = []
    for file in files:
        if some and sum(other.bytes for other in some) + file.bytes > SMALL:
            yield some
            some = []
        some.append(file)
    if some:
        yield some


def _files(agent: AgentLink, stream: bytes) -> dict[str, tuple[PackedFile, bytes]]:
    found = {}
    at = 0
    while at < len(stream):
        end = stream.index(b"\n", at) + 1
        head = agent.decode("pack", stream[at:end], PackedFile)
        at = end + max(0, head.bytes)
        if head.path and head.bytes >= 0:
            found[head.path] = head, stream[end:at]
    return found


def _missing(files: Iterable[Wanted]) -> list[Wanted]:
    return [
        file
        for file in files
        if file.sha256 is None or not file.local.is_file() or file_sha256(file.local) != file.sha256
    ]


def _keep(files: Iterable[Wanted], found: dict[str, tuple[PackedFile, bytes]]) -> list[Wanted]:
    """Durable, each whole or not at all; returns those that are not what is wanted."""
    left = []
    whole: dict[Path, bytes] = {}
    for file in files:
        head, content = found.get(file.path, (None, b""))
        wanted = file.sha256 or (head.sha256 if head else None)
        if hashlib.sha256(content).hexdigest() == wanted:
            whole[file.local] = content
        else:
            left.append(file)
    folders = {local.parent for local in whole}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    # The disk writes several at once in the time of one.
    parts = list(_FLUSHING.map(_write_part, whole, whole.values()))
    for part, local in zip(parts, whole, strict=True):
        part.replace(local)
    for folder in folders:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return left


def _write_part(local: Path, content: bytes) -> Path:
    part = local.with_name(local.name + ".part")
    with part.open("wb", buffering=0) as sink:
        sink.write(content)
        os.fsync(sink.fileno())
    return part
