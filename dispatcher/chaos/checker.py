"""Which invariants the logs of a drill break. Pure: evidence in, findings out."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from dispatcher.chaos.evidence import AttemptRow, EventRow, Evidence, HostAttempt, Key, Run

ENDED = frozenset({"done", "held", "error", "cancelled"})
# Reasons by which the dispatcher says that an attempt left nothing behind.
_LOST = frozenset({"attempt_vanished", "host_rebooted"})


@dataclass(frozen=True, slots=True)
class Broken:
    invariant: str
    detail: str


def check(evidence: Evidence) -> list[Broken]:
    """Everything that is wrong, in the order of INVARIANTS."""
    return [
        Broken(name, detail)
        for name, findings in INVARIANTS.items()
        for detail in findings(evidence)
    ]


def _one_run_per_attempt(evidence: Evidence) -> Iterator[str]:
    runs: dict[Key, list[Run]] = defaultdict(list)
    for run in evidence.runs:
        runs[run.job, run.attempt].append(run)
    known = {(row.job, row.attempt) for row in evidence.attempts}
    for (job, attempt), found in sorted(runs.items()):
        if len(found) > 1:
            where = ", ".join(f"pid {run.pid} on {run.host}" for run in found)
            yield f"attempt {attempt} of {job} ran {len(found)} times: {where}"
        if (job, attempt) not in known:
            yield f"attempt {attempt} of {job} ran on {found[0].host} and was never committed"


def _one_live_attempt(evidence: Evidence) -> Iterator[str]:
    """Stronger than one per stage: no two attempts of a job live at the same time."""
    runs: dict[str, list[Run]] = defaultdict(list)
    for run in evidence.runs:
        runs[run.job].append(run)
    for job, found in sorted(runs.items()):
        for first, second in combinations(sorted(found, key=lambda run: run.began), 2):
            if first.attempt != second.attempt and second.began < first.alive_until:
                yield (
                    f"{job}: attempts {first.attempt} ({first.stage} on {first.host}) and "
                    f"{second.attempt} ({second.stage} on {second.host}) lived together for "
                    f"{first.alive_until - second.began:.2f} s"
                )


def _log_bytes(evidence: Evidence) -> Iterator[str]:
    there = _by_key(evidence.host_attempts)
    pieces: dict[Key, list[tuple[int, bytes]]] = defaultdict(list)
    for piece in evidence.logs:
        pieces[piece.job, piece.attempt].append((piece.position, piece.data))
    for row in evidence.attempts:
        key = (row.job, row.attempt)
        text = b""
        for position, data in sorted(pieces.pop(key, [])):
            if position != len(text):
                how = "twice" if position < len(text) else "never"
                yield f"{_named(row)}: log bytes {position}..{len(text)} were stored {how}"
            text += data
        host = there.get(key)
        yield from _compare(row, "log", text, None if host is None else host.log, "log_bytes")
    for job, attempt in sorted(pieces):
        yield f"log of attempt {attempt} of {job}, which was never committed"


def _events(evidence: Evidence) -> Iterator[str]:
    there = _by_key(evidence.host_attempts)
    stored: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for event in sorted(evidence.events, key=lambda e: e.id):
        if event.source == "agent" and event.job is not None and event.attempt is not None:
            stored[event.job, event.attempt].append({"kind": event.kind, **event.payload})
    for row in evidence.attempts:
        here = stored.get((row.job, row.attempt), [])
        host = there.get((row.job, row.attempt))
        if host is None:
            if here:
                yield f"{_named(row)}: {len(here)} events are stored, its directory is gone"
            continue
        size = len(host.events) if row.exit is None else int(row.exit["events_bytes"])
        written = [_event(line) for line in host.events[:size].splitlines()]
        whole = row.exit is not None
        if here != (written if whole else written[: len(here)]):
            yield f"{_named(row)}: {len(here)} events are stored, the host wrote {len(written)}"


def _inputs(evidence: Evidence) -> Iterator[str]:
    """Removed only after FrameExtraction was known to be good there, and never missed by a
    stage. A stitch and a cancelled job have their originals elsewhere."""
    kinds = {job.id: job.kind for job in evidence.jobs}
    stages = {(row.job, row.attempt): row for row in evidence.attempts}
    verified: set[tuple[str, str]] = set()
    cancelled: set[str] = set()
    left: set[tuple[str, str]] = set()  # (job, host) the job had been taken away from
    at: dict[str, str] = {}
    for event in sorted(evidence.events, key=lambda e: e.id):
        job = event.job
        if job is None or event.source != "dispatcher":
            continue
        if event.kind == "attempt_succeeded" and event.attempt is not None:
            row = stages.get((job, event.attempt))
            if row is not None and row.stage == "FrameExtraction":
                verified.add((job, row.host))
        elif event.kind == "cancel_requested":
            cancelled.add(job)
        elif event.kind == "host_assigned":
            host = str(event.payload.get("host", event.host))
            if job in at and at[job] != host:
                left.add((job, at[job]))
            at[job] = host
        elif event.kind == "attempt_failed" and job in at:
            # It may be sent elsewhere from here on; its source is untouched where it came from.
            left.add((job, at[job]))
        elif event.kind == "inputs_reclaimed" and _removed(event):
            host = str(event.payload.get("host", event.host))
            free = kinds.get(job) == "stitch" or job in cancelled or (job, host) in left
            if not free and (job, host) not in verified:
                yield f"{job}: inputs were removed from {host} before its frames were verified"
    for row in evidence.attempts:
        if row.reason == "input_missing":
            yield f"{_named(row)}: its inputs were gone when it began"
    for source in evidence.lost_sources:
        yield f"{source}: the original footage is gone or changed"


def _jobs_end(evidence: Evidence) -> Iterator[str]:
    for job in evidence.jobs:
        if job.state not in ENDED:
            yield f"{job.id} is {job.state}"
        elif job.state in ("held", "error") and not (job.reason and job.message):
            yield f"{job.id} is {job.state} without a reason"


def _only_expected_holds(evidence: Evidence) -> Iterator[str]:
    for job in evidence.jobs:
        wanted = "held" if job.id in evidence.expected_held else "done"
        if job.state in ENDED and job.state != wanted:
            why = f" ({job.reason}: {job.message})" if job.reason else ""
            yield f"{job.id} is {job.state} and should be {wanted}{why}"


def _harvested(evidence: Evidence) -> Iterator[str]:
    there = _by_key(evidence.host_attempts)
    for row in evidence.attempts:
        host = there.get((row.job, row.attempt))
        if row.state == "failed" and row.reason in _LOST and host is not None and _ok(host):
            yield f"{_named(row)}: finished well and was taken for lost ({row.reason})"
        if row.state == "succeeded" and (host is None or not _ok(host)):
            yield f"{_named(row)}: counted as good, its host has no record of that"


def _reservations(evidence: Evidence) -> Iterator[str]:
    states = {job.id: job.state for job in evidence.jobs}
    for job, attempt in evidence.reservations:
        if states.get(job, "done") in ENDED:
            yield f"{job} has ended and still holds the reservation of attempt {attempt}"


def _processes(evidence: Evidence) -> Iterator[str]:
    yield from evidence.processes_left


INVARIANTS: dict[str, Callable[[Evidence], Iterable[str]]] = {
    "one_run_per_attempt": _one_run_per_attempt,
    "one_live_attempt_of_a_stage": _one_live_attempt,
    "log_bytes_exactly_once": _log_bytes,
    "events_exactly_once": _events,
    "inputs_kept_until_verified": _inputs,
    "finished_work_is_harvested": _harvested,
    "every_job_ends": _jobs_end,
    "only_named_jobs_are_held": _only_expected_holds,
    "no_reservation_leak": _reservations,
    "no_process_left": _processes,
}


def _named(row: AttemptRow) -> str:
    return f"attempt {row.attempt} of {row.job} ({row.stage} on {row.host})"


def _by_key(attempts: Iterable[HostAttempt]) -> dict[Key, HostAttempt]:
    return {(item.job, item.attempt): item for item in attempts}


def _compare(
    row: AttemptRow, what: str, stored: bytes, written: bytes | None, size: str
) -> Iterator[str]:
    """All of it once the end of the attempt is known, else a beginning of it."""
    if written is None:
        if stored:
            yield f"{_named(row)}: {len(stored)} bytes of {what} stored, its directory is gone"
        return
    if row.exit is not None:
        written = written[: int(row.exit[size])]
        if stored != written:
            yield f"{_named(row)}: {len(stored)} bytes of {what} stored, {len(written)} written"
    elif not written.startswith(stored):
        yield f"{_named(row)}: the {len(stored)} bytes of {what} stored are not what was written"


def _event(line: bytes) -> dict[str, Any]:
    """A line of events.jsonl without what the database keeps in columns of its own."""
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        return {"kind": "unreadable", "text": line.decode(errors="replace")}
    return {key: item for key, item in value.items() if key not in ("time", "attempt")}


def _removed(event: EventRow) -> bool:
    return int(event.payload.get("removed_bytes") or 0) > 0


def _ok(host: HostAttempt) -> bool:
    """By the exit record, else by the stage's own result: its supervisor may have been killed."""
    outcome = host.result if host.exit is None else host.exit.get("outcome")
    return isinstance(outcome, Mapping) and bool(outcome.get("ok"))
