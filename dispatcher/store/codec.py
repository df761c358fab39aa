"""Rows of the database <-> frozen dataclasses. JSON columns are decoded here and nowhere else."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Hashable
from functools import cache
from typing import Any, cast

from dispatcher.core.breaker import Breaker, Failure, Position
from dispatcher.core.events import Event
from dispatcher.core.model import Job, JobKind, JobState, Reason, Reservation, Stage, Step, Waiting
from dispatcher.core.need import Observation
from dispatcher.core.plan import SegmentView, StitchLevel
from dispatcher.store.rows import (
    Acquisition,
    ArtifactRow,
    Attempt,
    Clip,
    EventRow,
    Gpu,
    Host,
    Progress,
    Request,
    Run,
    Segment,
    StageMetrics,
    Stitch,
)

_RESERVATION = (
    "attempt", "host", "slot", "gpu", "mib", "disk_bytes", "cpu_cores", "ram_mib",
    "decode_sessions",
)  # fmt: skip


_ENCODER = json.JSONEncoder(separators=(",", ":"))  # json.dumps would make one each time


def to_json(value: Any) -> str:
    return _ENCODER.encode(value)


def columns(row: Any) -> dict[str, Any]:
    """The fields of a dataclass as they are; asdict would copy every value."""
    return {name: getattr(row, name) for name in _names(cast(Hashable, type(row)))}


@cache
def _names(kind: Hashable) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cast(Any, kind)))


def job_values(job: Job) -> dict[str, Any]:
    """Columns of `jobs`; the reservation has a table of its own."""
    values = columns(job)
    del values["reservation"]
    values["retries"] = to_json(job.retries)
    values["avoid_hosts"] = to_json(job.avoid_hosts)
    values["leftovers"] = to_json(job.leftovers)
    values["reclaimed"] = to_json(job.reclaimed)
    return values


def job_of(row: sqlite3.Row) -> Job:
    """A row of the query select_jobs."""
    values = _plain(row)
    reserved = {name: values.pop(f"r_{name}") for name in _RESERVATION}
    reservation = None
    if reserved["attempt"] is not None:
        reservation = Reservation(job=values["id"], **reserved)
    values.update(
        kind=JobKind(values["kind"]),
        state=JobState(values["state"]),
        step=Step(values["step"]),
        stage=Stage(values["stage"]),
        inputs_on_host=bool(values["inputs_on_host"]),
        retries=json.loads(values["retries"]),
        reason=_reason(values["reason"]),
        avoid_hosts=tuple(json.loads(values["avoid_hosts"])),
        leftovers=tuple(json.loads(values["leftovers"])),
        reclaimed=tuple(json.loads(values["reclaimed"])),
    )
    return Job(**values, reservation=reservation)


def event_payload(event: Event) -> dict[str, Any]:
    values = columns(event)
    del values["at"], values["stimulus"]
    return {
        name: columns(value) if isinstance(value, Reservation) else value
        for name, value in values.items()
    }


def acquisition_of(row: sqlite3.Row) -> Acquisition:
    return Acquisition(**_plain(row))


def segment_of(row: sqlite3.Row) -> Segment:
    values = _plain(row)
    clips = tuple(Clip(**clip) for clip in json.loads(values.pop("clips")))
    return Segment(**values, clips=clips)


def segment_view_of(row: sqlite3.Row) -> SegmentView:
    return SegmentView(
        job=row["job"], auv=row["auv"], name=row["label"], state=JobState(row["state"]),
        created_at=row["created_at"],
    )  # fmt: skip


def run_of(row: sqlite3.Row) -> Run:
    return Run(**_plain(row, "config", "provenance"))


def attempt_of(row: sqlite3.Row) -> Attempt:
    values = _plain(row, "evidence", "exit")
    values.update(
        stage=Stage(values["stage"]),
        resumed=bool(values["resumed"]),
        reason=_reason(values["reason"]),
    )
    return Attempt(**values)


def metrics_of(row: sqlite3.Row) -> StageMetrics:
    values = _plain(row, "metrics")
    values["stage"] = Stage(values["stage"])
    return StageMetrics(**values)


def observation_of(row: sqlite3.Row) -> Observation:
    return Observation(
        stage=Stage(row["stage"]),
        device=row["device"],
        frames=row["frames"],
        pixels=row["pixels"],
        cap=row["cap"],
        train_steps=row["train_steps"],
        wall_s=row["wall_s"],
        cpu_s=row["cpu_s"],
        peak_rss_mib=row["peak_rss_mib"],
        peak_vram_mib=row["peak_vram_mib"],
        peak_disk_bytes=row["peak_disk_bytes"],
        died_of=_reason(row["died_of"]),
    )


def progress_of(row: sqlite3.Row) -> tuple[str, Progress]:
    values = _plain(row, "numbers")
    return values.pop("job"), Progress(**values)


def waiting_of(row: sqlite3.Row) -> Waiting:
    values = _plain(row, "per_host")
    values["reason"] = Reason(values["reason"])
    return Waiting(**values)


def artifact_of(row: sqlite3.Row) -> ArtifactRow:
    return ArtifactRow(**_plain(row))


def stitch_of(row: sqlite3.Row, members: tuple[str, ...]) -> Stitch:
    values = _plain(row, "report", "decisions")
    values.update(
        level=StitchLevel(values["level"]),
        state=JobState(values["state"]),
        decisions=tuple(values["decisions"]),
        passthrough=bool(values["passthrough"]),
    )
    return Stitch(**values, members=members)


def event_of(row: sqlite3.Row) -> EventRow:
    return EventRow(**_plain(row, "payload"))


def host_of(row: sqlite3.Row) -> Host:
    values = _plain(row, "facts")
    values.update(cordoned=bool(values["cordoned"]), draining=bool(values["draining"]))
    return Host(**values)


def breaker_values(breaker: Breaker) -> dict[str, Any]:
    values = columns(breaker)
    values["failures"] = to_json([dataclasses.asdict(failure) for failure in breaker.failures])
    return values


def breaker_of(row: sqlite3.Row) -> Breaker:
    values = _plain(row, "failures")
    values.update(
        position=Position(values["position"]),
        failures=tuple(Failure(**failure) for failure in values["failures"]),
    )
    return Breaker(**values)


def gpu_of(row: sqlite3.Row) -> Gpu:
    values = _plain(row, "processes")
    values["processes"] = tuple(values["processes"])
    return Gpu(**values)


def request_of(row: sqlite3.Row) -> Request:
    return Request(**_plain(row, "args"))


def _plain(row: sqlite3.Row, *json_columns: str) -> dict[str, Any]:
    values = {name: row[name] for name in row.keys()}  # noqa: SIM118 - a Row iterates its values
    for name in json_columns:
        values[name] = json.loads(values[name]) if values[name] is not None else None
    return values


def _reason(value: str | None) -> Reason | None:
    return Reason(value) if value is not None else None
