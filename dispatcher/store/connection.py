"""One SQLite connection on one thread of its own; SQLite's failures become StoreError."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Concatenate, ParamSpec, TypeVar

from dispatcher.store.base import StoreError
from dispatcher.store.queries import migrations, queries

P = ParamSpec("P")
T = TypeVar("T")

BUSY_TIMEOUT_MS = 10_000  # a command in another process may hold the write lock for a moment


class Database:
    """What the table modules write with. Used on its connection's thread only."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._durable: bool | None = None  # as it is set

    def rows(self, name: str, /, **values: Any) -> list[sqlite3.Row]:
        return self._connection.execute(queries()[name], values).fetchall()

    def row(self, name: str, /, **values: Any) -> sqlite3.Row | None:
        found: sqlite3.Row | None = self._connection.execute(queries()[name], values).fetchone()
        return found

    def change(self, name: str, /, **values: Any) -> int:
        """Returns the number of rows that changed."""
        return self._connection.execute(queries()[name], values).rowcount

    def change_all(self, name: str, rows: Iterable[dict[str, Any]], /) -> None:
        """`change` for each."""
        self._connection.executemany(queries()[name], rows)

    def insert(self, name: str, /, **values: Any) -> int:
        """Returns the id of the new row."""
        return self._connection.execute(queries()[name], values).lastrowid or 0

    def commit(self, work: Callable[[Database], T], *, durable: bool) -> T:
        """Do `work` in one transaction. `durable`: on the disk before it returns
        (synchronous=FULL), as an intent must be."""
        if durable != self._durable:
            self._connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._durable = durable
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            done = work(self)
            self._connection.execute("COMMIT")
        except BaseException:
            _take_back(self._connection)
            raise
        return done

    def close(self) -> None:
        self._connection.close()

    def look(self, work: Callable[[Database], T]) -> T:
        """Do `work`, several reads of one commit."""
        self._connection.execute("BEGIN")
        try:
            return work(self)
        finally:
            self._connection.execute("COMMIT")


class Worker:
    """A thread with one connection. `read` and `write` run a function of Database there.

    The thread is fed by a queue of ours: with an executor's futures, going there and back costs
    the event loop twice the CPU, some fifty times a job.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._todo: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._database: Database | None = None
        self._closed = False
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (call := self._todo.get()) is not None:
            call()

    async def open(self, *, migrate: bool) -> None:
        await self._run(self._open, migrate)

    async def read(
        self, work: Callable[Concatenate[Database, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        def look() -> T:
            return self._open_one().look(lambda database: work(database, *args, **kwargs))

        return await self._run(look)

    async def write(
        self,
        durable: bool,
        work: Callable[Concatenate[Database, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        def commit() -> T:
            return self._open_one().commit(
                lambda database: work(database, *args, **kwargs), durable=durable
            )

        return await self._run(commit)

    async def close(self) -> None:
        """Raises StoreError. Work that was handed in before is done first."""
        if self._closed:
            return
        try:
            await self._run(self._close)
        finally:
            self._closed = True
            self._todo.put(None)
            self._thread.join()

    def _open_one(self) -> Database:
        if self._database is None:
            raise self._is_closed()
        return self._database

    def _is_closed(self) -> StoreError:
        return StoreError("the database is not open", where=str(self._path))

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        """A caller that is cancelled leaves no transaction half described: it is done all the
        same, and nobody is told."""
        if self._closed:
            raise self._is_closed()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def call() -> None:
            tell: Callable[[], None]
            try:
                tell = partial(answer.set_result, self._guarded(work, *args))
            except BaseException as error:
                tell = partial(answer.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_unless_cancelled, answer, tell)

        self._todo.put(call)
        return await answer

    def _guarded(self, work: Callable[..., T], *args: Any) -> T:
        try:
            return work(*args)
        except sqlite3.Error as error:
            raise StoreError(
                "the database failed", where=str(self._path), why=str(error), fix=_fix(error)
            ) from error

    def _open(self, migrate: bool) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None)
        connection.row_factory = sqlite3.Row
        connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA foreign_keys=ON")
        try:
            if migrate:
                _migrate(connection, self._path)
        except BaseException:
            connection.close()
            raise
        self._database = Database(connection)

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None


def _unless_cancelled(answer: asyncio.Future[Any], tell: Callable[[], None]) -> None:
    if not answer.cancelled():
        tell()


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the schema up to date; each migration and its number in one transaction."""
    newest = len(migrations())
    if _version(connection) > newest:
        raise StoreError(
            f"the database has schema {_version(connection)}, this cosma knows {newest}",
            where=str(path),
            fix="use the cosma that wrote it, or a newer one",
        )
    for version, script in migrations():
        if version <= _version(connection):
            continue
        connection.execute("BEGIN IMMEDIATE")
        try:
            if version > _version(connection):  # another process may have been faster
                for statement in _statements(script):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version={version}")
            connection.execute("COMMIT")
        except BaseException:
            _take_back(connection)
            raise


def _take_back(connection: sqlite3.Connection) -> None:
    """SQLite has done so itself where the disk was full: what failed first is what is told."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _fix(error: sqlite3.Error) -> str:
    match getattr(error, "sqlite_errorcode", None):
        case sqlite3.SQLITE_NOTADB:
            return "Name another one with --db"
        case sqlite3.SQLITE_CORRUPT:
            return "Put a copy of it back, or what `sqlite3 FILE .recover` still reads of it"
        case _:
            return "Check that the disk has room, and that file and directory can be written"
