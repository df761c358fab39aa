"""What was removed on hosts, and what trims gave back: transactions and methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from dispatcher.core.reclaiming import share_of_trim
from dispatcher.store import codec
from dispatcher.store.connection import Database, Worker
from dispatcher.store.rows import Removal, Trim


def add_removals(db: Database, rows: Iterable[Removal]) -> None:
    for row in rows:
        db.insert("insert_removal", **codec.columns(row))


def untrimmed(db: Database, host: str | None = None) -> dict[str, tuple[int, int]]:
    rows = db.rows("select_untrimmed", host=host)
    return {row["host"]: (row["last"], row["freed"]) for row in rows}


def add_trim(db: Database, row: Trim, last: int) -> None:
    number = db.insert("insert_trim", **dataclasses.asdict(row))
    if row.trimmed_bytes is not None:
        db.change("mark_trimmed", trim=number, host=row.host, last=last)


def trims(db: Database, host: str | None) -> list[Trim]:
    names = [one.name for one in dataclasses.fields(Trim)]
    rows = db.rows("select_trims", host=host)
    return [Trim(**{name: row[name] for name in names}) for row in rows]


def given_back(db: Database, job: str) -> int | None:
    shares = [
        share_of_trim(row["freed_bytes"], row["freed_in_all"] or 0, row["trimmed_bytes"])
        for row in db.rows("select_removals", job=job)
    ]
    known = [share for share in shares if share is not None]
    return sum(known) if known else None


class DiskBooks:
    """The part of `dispatcher.store.base.Store` about hosts' disks."""

    _writer: Worker
    _reader: Worker

    async def add_removals(self, rows: Sequence[Removal]) -> None:
        await self._writer.write(False, add_removals, tuple(rows))

    async def untrimmed(self) -> dict[str, tuple[int, int]]:
        return await self._reader.read(untrimmed)

    async def add_trim(self, row: Trim, last: int) -> None:
        await self._writer.write(False, add_trim, row, last)

    async def trims(self, host: str | None = None) -> list[Trim]:
        return await self._reader.read(trims, host)

    async def given_back(self, job: str) -> int | None:
        return await self._reader.read(given_back, job)
