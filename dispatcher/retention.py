"""Removes from the artifact store what nobody refers to any more, and old logs from the database;
what went is in the event log."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dispatcher.artifact_store import LOG, OBJECTS, ArtifactStore
from dispatcher.clock import Clock
from dispatcher.core.model import TERMINAL, Job, JobState
from dispatcher.core.retention import Garbage, References, Sort, Stored, garbage, hashes_in
from dispatcher.errors import HostError
from dispatcher.object_store import ObjectStore
from dispatcher.provenance import DELIVERED
from dispatcher.store.base import Store

log = logging.getLogger("cosma")

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
_OBJECT = re.compile(r"[0-9a-f]{64}")
_REMAINDER = re.compile(r".*\.(part|new|again)")
REMOVED = "garbage_removed"  # written before it goes: nothing goes unseen
NOT_REMOVED = "garbage_not_removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    store: Store
    artifacts: ArtifactStore
    remote: ObjectStore | None
    clock: Clock
    keep_s: float

    async def find(self) -> list[Garbage]:
        """Changes nothing. Raises OSError and TransferError."""
        jobs = await self.store.load_jobs()
        # Files first: what is referred to meanwhile is then in the references.
        found = await asyncio.to_thread(lambda: list(self._stored(jobs)))
        found += [
            Stored(
                sort=Sort.LOG, where=f"log of {one.job}", bytes=one.bytes, job=one.job,
                age_s=self.clock.now() - one.ended_at,
            )
            for one in await self.store.stored_logs()
        ]  # fmt: skip
        return garbage(found, await self._references(jobs), self.keep_s)

    async def remove(self, items: Iterable[Garbage]) -> dict[str, str]:
        """Returns what is still there, and why."""
        left = {}
        for item in items:
            one = item.stored
            if one.sha256 and await self.store.artifacts(sha256=one.sha256):
                left[one.where] = "a job made the same again meanwhile"
                continue
            told = {"sort": one.sort, "where": one.where, "bytes": one.bytes, "why": item.why}
            await self.store.record_event(REMOVED, payload={**told, "sha256": one.sha256})
            try:
                if one.sort is Sort.LOG:
                    await self.store.remove_logs(one.job)
                else:
                    await asyncio.to_thread(self._remove, one)
            except (OSError, HostError) as error:
                left[one.where] = str(error)
                await self.store.record_event(NOT_REMOVED, payload={**told, "error": str(error)})
        return left

    async def run(self, every_s: float, _changed: Callable[[], None]) -> None:
        """For ever, beside a dispatcher; what cannot be done is tried again the next time."""
        while True:
            await asyncio.sleep(every_s)
            try:
                items = await self.find()
            except (OSError, HostError) as error:
                log.warning("retention: %s", error)
                continue
            left = await self.remove(items)
            gone = [item.stored for item in items if item.stored.where not in left]
            if gone:
                size = sum(one.bytes for one in gone)
                log.info("retention: %d files and logs with %d bytes removed", len(gone), size)
            for where, why in left.items():
                log.warning("retention: %s is not removed: %s", where, why)

    # --- what there is ---

    def _stored(self, jobs: Iterable[Job]) -> Iterator[Stored]:
        root, now = self.artifacts.root, self.clock.now()
        known = {(job.acquisition, job.id) for job in jobs}
        named: set[tuple[int, int]] = set()
        for path in sorted(root.glob("*/*/**/*")):
            parts = path.relative_to(root).parts
            if parts[0] == OBJECTS or path.is_dir():
                continue
            named.add(_identity(path))  # whosever it is
            if parts[:2] in known:
                sort = Sort.REMAINDER if _REMAINDER.fullmatch(path.name) else Sort.NAME
                yield _seen(path, sort, now, job=parts[1])
        for path in sorted((root / OBJECTS).glob("*/*")):
            if _OBJECT.fullmatch(path.name):
                at = _identity(path)
                yield _seen(path, Sort.OBJECT, now, sha256=path.name, named=at in named)
            elif _REMAINDER.fullmatch(path.name):
                yield _seen(path, Sort.REMAINDER, now)
        for one in self.remote.objects() if self.remote else ():
            yield Stored(
                sort=Sort.REMOTE,
                where=self.remote.url_of(one.sha256) if self.remote else "",
                bytes=one.bytes,
                age_s=now - one.modified_at,
                sha256=one.sha256,
            )

    async def _references(self, jobs: Iterable[Job]) -> References:
        rows = await self.store.artifacts()
        written = [json.dumps(stitch.report) for stitch in await self.store.stitches()]
        written += [
            json.dumps([run.provenance, run.config])
            for job in jobs
            if (run := await self.store.run(job.id)) is not None
        ]
        written += [json.dumps(e.payload) for e in await self.store.events(kind=DELIVERED)]
        if self.remote is not None:
            known = {(job.acquisition, job.id) for job in jobs}
            written += await asyncio.to_thread(self.remote.other_indexes, known)
        return References(
            hashes=frozenset(row.sha256 for row in rows) | hashes_in(written),
            paths=frozenset(row.local_path for row in rows if row.local_path is not None),
            settled_jobs=frozenset(job.id for job in jobs if job.state in TERMINAL),
            unkept_logs=frozenset(job.id for job in jobs if job.state is JobState.DONE)
            - {row.job for row in rows if row.path == LOG and row.local_path is not None},
        )

    def _remove(self, one: Stored) -> None:
        if one.sort is Sort.REMOTE and self.remote is not None:
            self.remote.remove(one.sha256)
            return
        path = Path(one.where)
        if one.sort is Sort.OBJECT and path.stat().st_nlink > 1:
            raise OSError(f"{path} has got a name meanwhile")
        path.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int]:
    """Of the file that a name leads to, or of a link that leads nowhere."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        facts = path.lstat()
    return facts.st_dev, facts.st_ino


def _seen(
    path: Path, sort: Sort, now: float, *, sha256: str = "", named: bool = False, job: str = ""
) -> Stored:
    facts = path.lstat()
    # ctime: also when it last gained or lost a name.
    age_s = now - max(facts.st_mtime, facts.st_ctime)
    return Stored(
        sort=sort, where=str(path), bytes=facts.st_size, age_s=age_s, sha256=sha256, named=named,
        job=job,
    )  # fmt: skip
