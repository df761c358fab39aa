"""What a host says of its attempts against what the database says: one finding a difference.

Pure. The host is believed about what it shows; that something is not shown proves nothing by
itself, so nothing is ever removed or ended because it is absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from dispatcher.core.model import Job, Step

# Steps in which the host has acknowledged the attempt, so that it must know it.
_ACKNOWLEDGED = frozenset({Step.RUN})
_LIVE = frozenset({Step.START, Step.RUN, Step.CANCEL})


class Shown(StrEnum):
    """As worker_agent.protocol.AttemptState."""

    RUNNING = "running"
    FINISHED = "finished"
    VANISHED = "vanished"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One attempt directory of a host."""

    acquisition: str
    job: str
    attempt: int
    shown: Shown


class Kind(StrEnum):
    ADOPTED = "adopted"  # runs, and is the job's live attempt
    HARVESTED = "harvested"  # ended while nobody looked, and is the job's live attempt
    VANISHED = "vanished"  # the job's live attempt, gone without a record
    ABSENT = "absent"  # the host acknowledged it and shows nothing of it now
    SUPERSEDED = "superseded"  # runs, but the job has gone on without it: to be cancelled
    UNKNOWN = "unknown"  # of no job of this database, or newer than it: left alone


# What an operator should see; the others are the life of a farm.
DIFFERENCES = frozenset({Kind.ABSENT, Kind.SUPERSEDED, Kind.UNKNOWN})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    kind: Kind
    job: str
    attempt: int
    acquisition: str
    message: str


def reconcile(
    host: str, before: Mapping[str, Job], seen: Iterable[Seen], after: Mapping[str, Job]
) -> list[Finding]:
    """Findings of one host, in the order seen, then what is absent.

    `before` are the jobs as they stood before the host was asked, `after` once it had answered: a
    job that moved on meanwhile is neither called absent nor superseded for it.
    """
    shown = list(seen)
    found = [item for one in shown if (item := _finding(host, one, after)) is not None]
    known = {(one.job, one.attempt) for one in shown}
    for job in before.values():
        if job.host != host or job.step not in _ACKNOWLEDGED or (job.id, job.attempt) in known:
            continue
        now = after.get(job.id)
        if now is None or (now.attempt, now.step) != (job.attempt, job.step):
            continue
        found.append(
            Finding(
                kind=Kind.ABSENT,
                job=job.id,
                attempt=job.attempt,
                acquisition=job.acquisition,
                message=f"{job.stage} was started on {host}, which shows nothing of it now",
            )
        )
    return found


def _finding(host: str, one: Seen, jobs: Mapping[str, Job]) -> Finding | None:
    job = jobs.get(one.job)
    if job is None or job.acquisition != one.acquisition:
        return _make(Kind.UNKNOWN, one, f"the database has no job {one.acquisition}/{one.job}")
    if one.attempt > job.attempt:
        return _make(Kind.UNKNOWN, one, f"the database knows {one.job} up to attempt {job.attempt}")
    if one.attempt == job.attempt and job.step in _LIVE and job.host == host:
        kind = {
            Shown.RUNNING: Kind.ADOPTED,
            Shown.FINISHED: Kind.HARVESTED,
            Shown.VANISHED: Kind.VANISHED,
        }[one.shown]
        return _make(kind, one, f"{job.stage} on {host}")
    if one.shown is Shown.RUNNING:
        # Positive evidence, not absence: the job's own row says that this number is over.
        where = f"attempt {job.attempt}, {job.state}" + (f" on {job.host}" if job.host else "")
        return _make(Kind.SUPERSEDED, one, f"still runs on {host}; the job is at {where}")
    return None


def _make(kind: Kind, one: Seen, message: str) -> Finding:
    return Finding(
        kind=kind,
        job=one.job,
        attempt=one.attempt,
        acquisition=one.acquisition,
        message=message,
    )
