"""Stitches and their members: transactions and methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dispatcher.core.model import Job, JobState
from dispatcher.core.plan import SegmentView
from dispatcher.store import codec, farm, jobs
from dispatcher.store.base import StoreError
from dispatcher.store.connection import Database, Worker
from dispatcher.store.rows import Request, Run, Stitch


def create_stitch(db: Database, stitch: Stitch, job: Job | None, run: Run | None) -> bool:
    if stitch.job != (job.id if job is not None else None):
        raise StoreError("a stitch is made together with its job", where=stitch.id)
    if db.row("select_stitches", acquisition=None, key=stitch.id) is not None:
        return False
    if job is not None:
        if run is None:
            raise StoreError("the job of a stitch needs its config", where=stitch.id)
        jobs.create_job(db, job, run)
    db.change(
        "insert_stitch",
        id=stitch.id,
        acquisition=stitch.acquisition,
        level=stitch.level,
        auv=stitch.auv,
        version=stitch.version,
        state=stitch.state,
        job=stitch.job,
        passthrough=stitch.passthrough,
        report=codec.to_json(stitch.report),
        decisions=codec.to_json(stitch.decisions),
        created_at=stitch.created_at,
    )
    for position, member in enumerate(stitch.members):
        db.change("insert_stitch_input", stitch=stitch.id, position=position, member=member)
    return True


def stitches(db: Database, acquisition: str | None, key: str | None = None) -> list[Stitch]:
    """`key` is the id of a stitch or of its job."""
    found = []
    for row in db.rows("select_stitches", acquisition=acquisition, key=key):
        inputs = db.rows("select_stitch_inputs", stitch=row["id"])
        found.append(codec.stitch_of(row, tuple(line["member"] for line in inputs)))
    return found


def update_stitch(
    db: Database, stitch: str, state: JobState | None, report: dict[str, Any] | None
) -> None:
    text = codec.to_json(report) if report is not None else None
    if db.change("update_stitch", id=stitch, state=state, report=text) == 0:
        raise StoreError("there is no such stitch", where=stitch)


def stitchable(
    db: Database, acquisition: str, kinds: tuple[str, ...]
) -> tuple[list[SegmentView], list[Stitch], list[Request]]:
    return (
        jobs.segment_views(db, acquisition),
        stitches(db, acquisition),
        farm.requests_of(db, kinds),
    )


class Stitches:
    """The part of `dispatcher.store.base.Store` about stitches."""

    _writer: Worker
    _reader: Worker

    async def create_stitch(self, stitch: Stitch, job: Job | None, run: Run | None) -> bool:
        return await self._writer.write(True, create_stitch, stitch, job, run)

    async def stitches(self, *, acquisition: str | None = None) -> list[Stitch]:
        return await self._reader.read(stitches, acquisition)

    async def stitch(self, id_or_job: str) -> Stitch | None:
        found = await self._reader.read(stitches, None, id_or_job)
        return found[0] if found else None

    async def stitchable(
        self, acquisition: str, kinds: Sequence[str]
    ) -> tuple[list[SegmentView], list[Stitch], list[Request]]:
        return await self._reader.read(stitchable, acquisition, tuple(kinds))

    async def update_stitch(
        self, stitch: str, *, state: JobState | None = None, report: dict[str, Any] | None = None
    ) -> None:
        await self._writer.write(True, update_stitch, stitch, state, report)
