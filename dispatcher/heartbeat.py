"""The dispatcher's sign of life: one small JSON file, replaced as a whole."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from dispatcher.core.model import Job

log = logging.getLogger("cosma")

STALE_S = 30.0  # it is written every few seconds


def heartbeat_path(database: Path) -> Path:
    return database.with_name(f"{database.name}.heartbeat")


def heartbeat_age_s(database: Path, now: float) -> float | None:
    """Seconds since a dispatcher of this database was last seen; None: never."""
    try:
        beat = json.loads(heartbeat_path(database).read_text())
        return max(0.0, now - float(beat["time"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def dispatcher_runs(database: Path, now: float) -> bool:
    age = heartbeat_age_s(database, now)
    return age is not None and age <= STALE_S


def write_heartbeat(path: Path, *, now: float, pid: int, jobs: Iterable[Job]) -> None:
    """`time` is Unix seconds; a reader compares it with its own clock. Never fsynced: a lost
    heartbeat says only that the machine is gone, which is true."""
    states = Counter(str(job.state) for job in jobs)
    text = json.dumps({"time": round(now, 1), "pid": pid, "jobs": dict(sorted(states.items()))})
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text + "\n")
        temporary.replace(path)
    except OSError as error:
        log.warning("no heartbeat: %s", error)
