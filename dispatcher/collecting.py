"""Brings a job's results to the artifact store: copied, verified, named, and if there is an object
store also there. Doing it again copies nothing twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dispatcher.artifact_store import (
    CHECKPOINT,
    COLLECTED_KINDS,
    KEPT_KINDS,
    LOG,
    ArtifactStore,
    put_in_place,
    write_whole,
)
from dispatcher.concurrent_copies import at_once
from dispatcher.core.model import Job, JobKind
from dispatcher.executors.base import Executor, Wanted
from dispatcher.executors.transfer import SMALL, file_sha256, local_error
from dispatcher.job_log import job_log
from dispatcher.object_store import ObjectStore
from dispatcher.store.base import Store
from dispatcher.store.rows import ArtifactRow, Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Collecting:
    store: Store
    artifacts: ArtifactStore
    remote: ObjectStore | None = None

    async def collect(
        self, job: Job, executor: Executor, run_dir: str, attempts: Sequence[Attempt]
    ) -> list[ArtifactRow]:
        """All that is kept of the job; `attempts` are all it had. Raises HostError, and OSError for
        the directory here."""
        rows = [r for r in await self.store.artifacts(job=job.id) if r.kind in COLLECTED_KINDS]
        files = [self._wanted(job, r.path, r.kind, r.bytes, r.sha256) for r in rows]
        checkpoint = self._wanted(job, CHECKPOINT, "checkpoint", 0, None)
        await asyncio.to_thread(self._offer, files)
        small = [file for file in files if file.bytes <= SMALL]
        left = await executor.collect_small(run_dir, [*small, checkpoint])
        await at_once(
            executor.collect_file(run_dir, file.path, file.local, sha256=file.sha256)
            for file in [*left, *(file for file in files if file.bytes > SMALL)]
        )
        text = await job_log(self.store, attempts)
        added = await asyncio.to_thread(self._complete, job, files, checkpoint, text)
        here = {file.path: str(file.local) for file in files}
        collected = [replace(row, local_path=here[row.path]) for row in rows]
        # Durable with the event of the collection.
        known = await self.store.add_artifacts(job.id, [*collected, *added], durable=False)
        await self._keep_report(job, known)
        return await self._mirror(job, [row for row in known if row.kind in KEPT_KINDS])

    def _wanted(self, job: Job, path: str, kind: str, size: int, sha256: str | None) -> Wanted:
        local = self.artifacts.path(job.acquisition, job.id, path)
        return Wanted(path=path, kind=kind, local=local, bytes=size, sha256=sha256)

    def _offer(self, files: Iterable[Wanted]) -> None:
        for file in files:
            if file.sha256 is not None:
                self.artifacts.offer(file.local, file.sha256, file.bytes)

    def _complete(
        self, job: Job, files: Iterable[Wanted], checkpoint: Wanted, text: bytes
    ) -> list[ArtifactRow]:
        """Add the log, and keep all as objects; returns what no stage has listed."""
        log = self._wanted(job, LOG, "log", 0, None)
        write_whole(log.local, text)
        added = _added(job, (checkpoint, log))
        for file in files:
            if file.sha256 is not None:
                self.artifacts.keep(file.local, file.sha256)
        for row in added:
            self.artifacts.keep(Path(row.local_path or ""), row.sha256)
        return added

    async def bring_back(self, local: Path) -> bool:
        """A result that is not in the directory any more, from its object; whether it is there.
        Raises TransferError."""
        rows = await self.store.artifacts(path=str(local))
        for row in rows[:1]:
            try:
                return await asyncio.to_thread(restore, row, self.artifacts, self.remote)
            except OSError as error:
                raise local_error("the object store", local, error) from None
        return False

    async def _keep_report(self, job: Job, rows: Iterable[ArtifactRow]) -> None:
        """A stitch's own report goes into its row, so that `cosma stitch show` needs no files."""
        if job.kind is not JobKind.STITCH:
            return
        for row in rows:
            if row.kind == "stitch_report" and row.local_path is not None:
                text = await asyncio.to_thread(Path(row.local_path).read_text)
                await self.store.update_stitch(job.id, report=json.loads(text))

    async def _mirror(self, job: Job, rows: list[ArtifactRow]) -> list[ArtifactRow]:
        """The job is not done before the object store has it all, too."""
        remote = self.remote
        if remote is None:
            return rows

        async def put(row: ArtifactRow) -> None:
            url = remote.url_of(row.sha256)
            if row.remote_url != url:
                local = Path(row.local_path or "")
                await asyncio.to_thread(remote.put, local, row.sha256, row.bytes)
                await self.store.add_artifacts(job.id, [replace(row, remote_url=url)])

        await at_once(put(row) for row in rows if row.local_path is not None)
        await asyncio.to_thread(remote.write_index, job.acquisition, job.id, rows)
        return rows


def restore(row: ArtifactRow, artifacts: ArtifactStore, remote: ObjectStore | None) -> bool:
    """Have a collected file here again from its object, here or in the object store; False when
    neither has it. Raises OSError and TransferError."""
    local = Path(row.local_path or "")
    if artifacts.holds(row.sha256):
        return artifacts.offer(local, row.sha256, row.bytes)
    if remote is None or row.remote_url != remote.url_of(row.sha256):
        return False
    local.parent.mkdir(parents=True, exist_ok=True)
    part = local.with_name(f"{local.name}.part")
    remote.get(row.sha256, part)
    put_in_place(part, local)
    artifacts.keep(local, row.sha256)
    return True


def _added(job: Job, files: Iterable[Wanted]) -> list[ArtifactRow]:
    """Of no attempt: what stages make is handed from host to host, these are not."""
    rows = []
    for file in files:
        row = ArtifactRow(
            job=job.id,
            kind=file.kind,
            path=file.path,
            bytes=file.local.stat().st_size,
            sha256=file_sha256(file.local),
            local_path=str(file.local),
        )
        rows.append(row if file.path == LOG else replace(row, host=job.host))
    return rows
