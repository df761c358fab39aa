"""Opening the database for a command that is not the dispatcher."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from dispatcher import event_loop
from dispatcher.core.model import Job
from dispatcher.core.survey import slug
from dispatcher.errors import UsageError
from dispatcher.settings import DispatcherSettings
from dispatcher.store.base import Store, StoreError
from dispatcher.store.sqlite import SqliteStore

T = TypeVar("T")


def with_store(
    database: Path | None, work: Callable[[Store], Awaitable[T]], *, create: bool = False
) -> T:
    """Run `work` on the store. Raises UsageError when there is no database, unless `create`."""
    path = DispatcherSettings.load(database=database).database
    if not create and not path.exists():
        raise UsageError(
            "no database",
            where=str(path),
            fix="run `cosma ingest` first, or name another one with --db",
        )

    async def run() -> T:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                "the database cannot be made", where=str(path), why=error.strerror or str(error),
                fix="Name another file with --db",
            ) from None  # fmt: skip
        store = await SqliteStore.open(path)
        try:
            return await work(store)
        finally:
            await store.close()

    return event_loop.run(run())


async def known_acquisition(store: Store, name: str) -> str:
    """Its id. Raises UsageError, with those that there are."""
    known = await store.acquisitions()
    if slug(name) not in {row.id for row in known}:
        names = ", ".join(row.name for row in known)
        raise UsageError("no such acquisition", where=name, fix=f"Known are: {names or 'none'}")
    return slug(name)


async def known_job(store: Store, job_id: str) -> Job:
    """Raises UsageError, with near names, for a job the database does not have."""
    job = await store.job(job_id)
    if job is not None:
        return job
    near = [j.id for j in await store.load_jobs() if job_id in j.id][:5]
    fix = f"did you mean {', '.join(near)}?" if near else "`cosma jobs` lists them"
    raise UsageError("no such job", where=job_id, fix=fix)
