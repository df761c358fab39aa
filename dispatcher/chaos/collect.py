"""Reads the evidence of a drill: the dispatcher's database, and what lies on the hosts."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from dispatcher.chaos.evidence import (
    AttemptRow,
    EventRow,
    Evidence,
    HostAttempt,
    JobRow,
    LogPiece,
    Run,
)


def collect(
    database: Path,
    work_dirs: Mapping[str, Path],
    run_logs: Mapping[str, Path],
    *,
    sources: Mapping[Path, str],
    processes_left: Iterable[str],
    expected_held: Iterable[str],
) -> Evidence:
    """`sources`: footage -> its SHA-256 before the drill. Nothing writes meanwhile."""
    with closing(read_only(database)) as reader:
        return Evidence(
            jobs=tuple(
                JobRow(**row)
                for row in _rows(reader, "SELECT id, kind, state, reason, message FROM jobs")
            ),
            attempts=tuple(
                AttemptRow(**{**row, "exit": _json(row["exit"])})
                for row in _rows(
                    reader,
                    "SELECT job, attempt, stage, host, state, reason, exit FROM attempts"
                    " ORDER BY job, attempt",
                )
            ),
            reservations=tuple(
                (row["job"], row["attempt"])
                for row in _rows(reader, "SELECT job, attempt FROM reservations")
            ),
            events=tuple(
                EventRow(**{**row, "payload": _json(row["payload"]) or {}})
                for row in _rows(
                    reader,
                    "SELECT id, kind, job, attempt, host, source, payload FROM events ORDER BY id",
                )
            ),
            logs=tuple(
                LogPiece(**row)
                for row in _rows(reader, "SELECT job, attempt, position, data FROM logs")
            ),
            host_attempts=tuple(
                found for host, path in work_dirs.items() for found in _attempts(host, path)
            ),
            runs=tuple(run for host, path in run_logs.items() for run in read_runs(host, path)),
            processes_left=tuple(processes_left),
            lost_sources=tuple(str(p) for p, digest in sources.items() if sha256(p) != digest),
            expected_held=frozenset(expected_held),
        )


def read_only(database: Path) -> sqlite3.Connection:
    reader = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10.0)
    reader.row_factory = sqlite3.Row
    return reader


def sha256(path: Path) -> str | None:
    """None for a file that is not there."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def read_runs(host: str, path: Path) -> list[Run]:
    """Every process that wrote to a run log. A last line cut off by a power cut is left out."""
    runs: dict[tuple[str, int, int, str], Run] = {}
    for line in path.read_bytes().split(b"\n"):
        value = _json(line)
        if value is None:
            continue
        key = (value["job"], value["attempt"], value["pid"], value["boot_id"])
        known = runs.get(key)
        began = value["at"] if known is None else known.began
        runs[key] = Run(
            host=host,
            job=value["job"],
            attempt=value["attempt"],
            stage=value["stage"],
            pid=value["pid"],
            began=began,
            alive_until=value["at"],
        )
    return list(runs.values())


def _rows(reader: sqlite3.Connection, query: str) -> list[dict[str, Any]]:
    return [dict(row) for row in reader.execute(query)]


def _json(text: str | bytes | None) -> dict[str, Any] | None:
    if not text:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _attempts(host: str, work_dir: Path) -> Iterator[HostAttempt]:
    for started in sorted(work_dir.glob("*/*/attempts/*/started.json")):
        directory = started.parent
        yield HostAttempt(
            host=host,
            job=directory.parent.parent.name,
            attempt=int(directory.name),
            events=_bytes(directory / "events.jsonl"),
            log=_bytes(directory / "log"),
            exit=_json(_bytes(directory / "exit.json")),
            result=_json(_bytes(directory / "result.json")),
        )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
