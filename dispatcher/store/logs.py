"""What attempts printed: transactions and methods."""

from __future__ import annotations

from dispatcher.store.connection import Database, Worker
from dispatcher.store.rows import StoredLog


def logs(db: Database, job: str, attempt: int, offset: int) -> bytes:
    """The log from byte `offset` on."""
    rows = db.rows("select_logs", job=job, attempt=attempt, offset=offset)
    text = b"".join(row["data"] for row in rows)
    return text[offset - rows[0]["position"] :] if rows and offset > rows[0]["position"] else text


def stored_logs(db: Database) -> list[StoredLog]:
    return [
        StoredLog(job=row["job"], bytes=row["bytes"], ended_at=row["ended_at"])
        for row in db.rows("select_stored_logs")
    ]


def remove_logs(db: Database, job: str) -> bool:
    return db.change("delete_logs", job=job) > 0


class Logs:
    """The part of `dispatcher.store.base.Store` about logs, but for their arrival."""

    _writer: Worker
    _reader: Worker

    async def logs(self, job: str, attempt: int, *, offset: int = 0) -> bytes:
        return await self._reader.read(logs, job, attempt, offset)

    async def stored_logs(self) -> list[StoredLog]:
        return await self._reader.read(stored_logs)

    async def remove_logs(self, job: str) -> bool:
        return await self._writer.write(False, remove_logs, job)
