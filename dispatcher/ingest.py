"""From a directory of video to segments and jobs in the store."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from dispatcher.core.estimate import ClipSize, frames_of, pixels_of
from dispatcher.core.model import Job, JobKind, JobState, Step
from dispatcher.core.survey import (
    PlannedSegment,
    clip_name,
    group_clips,
    is_log,
    log_name,
    log_of,
    printable,
    slug,
)
from dispatcher.errors import UsageError
from dispatcher.settings import PipelineConfig
from dispatcher.sources import ClipProblem, SourceFile, find_files, inspect_clip
from dispatcher.store.base import Store
from dispatcher.store.rows import Acquisition, Clip, Run, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """What became of one segment."""

    job: str
    auv: str
    segment: str
    clips: int
    logs: int  # of the vehicle, that its clips have
    bytes: int
    new: bool
    state: JobState
    reason: str = ""
    message: str = ""


async def ingest(
    store: Store,
    location: str,
    *,
    acquisition: str,
    config: PipelineConfig,
    auv: str = "auv",
    serial: str = "unknown",
    priority: int = 0,
) -> list[Ingested]:
    """Make segments and jobs of everything at `location`; what exists already stays as it is.

    A segment with a clip that is plainly bad becomes a held job with the reason, so that the
    operator sees it beside the others. Raises UsageError when there is nothing to ingest, or when
    the survey has no name.
    """
    if not acquisition.strip():
        raise UsageError("the survey has no name", fix="Give it one: --acquisition NAME")
    files = {file.relative: file for file in find_files(location)}
    logs = {path: file for path, file in files.items() if is_log(path)}
    survey = slug(acquisition)
    planned = group_clips(files, auv=auv, serial=serial)
    await store.create_acquisition(Acquisition(id=survey, name=acquisition, created_at=time.time()))
    ids = job_ids(survey, planned)
    return [
        await _ingest_segment(
            store, survey, segment, [files[path] for path in segment.clips],
            [logs[log] if (log := log_of(path, logs)) else None for path in segment.clips],
            job_id=ids[segment], config=config, priority=priority,
        )
        for segment in planned
    ]  # fmt: skip


def job_ids(survey: str, planned: Sequence[PlannedSegment]) -> dict[PlannedSegment, str]:
    """A plain and readable id each; segments whose names come to the same one are told apart by
    their camera, and if that is not enough by a hash of their names. Pure."""
    found: dict[PlannedSegment, str] = {}
    for words in (
        lambda s: (s.auv, s.label),
        lambda s: (s.auv, s.gopro_serial, s.label),
        lambda s: (s.auv, s.label, _digest(s)),
    ):
        open_still = [segment for segment in planned if segment not in found]
        ids = {segment: slug(survey, *words(segment)) for segment in open_still}
        taken = Counter([*ids.values(), *found.values()])
        found.update({segment: name for segment, name in ids.items() if taken[name] == 1})
    return found


def _digest(segment: PlannedSegment) -> str:
    names = "\0".join((segment.auv, segment.gopro_serial, segment.label, *segment.clips))
    return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:8]


async def _ingest_segment(
    store: Store,
    survey: str,
    segment: PlannedSegment,
    files: list[SourceFile],
    logs: list[SourceFile | None],
    *,
    job_id: str,
    config: PipelineConfig,
    priority: int,
) -> Ingested:
    now = time.time()
    known = await store.job(job_id)
    if known is not None:
        return _known(known, await store.segments(job=job_id), segment, files, logs)
    looks = [inspect_clip(file) for file in files]
    problem = next((look.problem for look in looks if look.problem is not None), None)
    job = Job(
        id=job_id,
        kind=JobKind.RECONSTRUCT,
        acquisition=survey,
        name=segment.label,
        auv=segment.auv,
        created_at=now,
        priority=priority,
        input_bytes=sum(file.bytes for file in files),
        **_work([look.size for look in looks], config),
        **_held(job_id, problem),
    )
    clips = tuple(
        Clip(name=clip_name(order, file.relative), source=file.location, bytes=file.bytes,
             order=order, **_logged(files, logs, order))
        for order, file in enumerate(files)
    )  # fmt: skip
    await store.create_segment(
        Segment(
            id=job_id,
            acquisition=survey,
            auv=segment.auv,
            gopro_serial=segment.gopro_serial,
            label=segment.label,
            job=job_id,
            clips=clips,
            created_at=now,
        ),
        job,
        _run(job_id, config, segment, now),
    )
    return _ingested(job, segment, files, logs, new=True)


def _logged(
    files: Sequence[SourceFile], logs: Sequence[SourceFile | None], order: int
) -> dict[str, Any]:
    """What a clip's row says of its log; the first clip that has it gives it its name."""
    log = logs[order]
    if log is None:
        return {}
    first = next(index for index, other in enumerate(logs) if other == log)
    name = log_name(first, files[first].relative, log.relative)
    return {"log": log.location, "log_name": name, "log_bytes": log.bytes}


def _known(
    job: Job,
    stored: Sequence[Segment],
    segment: PlannedSegment,
    files: list[SourceFile],
    logs: list[SourceFile | None],
) -> Ingested:
    there = [clip.source for row in stored for clip in row.clips]
    row = _ingested(job, segment, files, logs, new=False)
    if there == [file.location for file in files]:
        known = [clip.log for row in stored for clip in row.clips]
        if known == [log.location if log else None for log in logs]:
            return row
        return dataclasses.replace(
            row,
            message="left as it is: its navigation log is not the one that lies there now; give "
            "another --acquisition to use that",
        )
    first = printable(there[0]) if there else "nowhere"
    return dataclasses.replace(
        row,
        message=f"left as it is: this segment exists with other clips ({first}); rename the "
        "segment, or give another --acquisition",
    )


def _held(job_id: str, problem: ClipProblem | None) -> dict[str, Any]:
    if problem is None:
        return {}
    return {
        "state": JobState.HELD,
        "step": Step.REST,
        "reason": problem.reason,
        "message": problem.message,
        "advice": f"{problem.advice}; then: cosma job retry {job_id}",
    }


def _work(clips: Sequence[ClipSize], config: PipelineConfig) -> dict[str, Any]:
    frames, cuda = config.frames, config.train.cuda
    return {
        "frames": frames_of(clips, frames.fps),
        "pixels": pixels_of(clips, frames.width, frames.height),
        "cap": cuda.cap,
        "train_steps": cuda.steps,
    }


def _run(job: str, config: PipelineConfig, segment: PlannedSegment, now: float) -> Run:
    values = config.as_dict()
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return Run(
        job=job,
        config=values,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        provenance={"clips": [printable(PurePosixPath(path).name) for path in segment.clips]},
        created_at=now,
    )


def _ingested(
    job: Job,
    segment: PlannedSegment,
    files: list[SourceFile],
    logs: list[SourceFile | None],
    *,
    new: bool,
) -> Ingested:
    return Ingested(
        job=job.id,
        auv=segment.auv,
        segment=segment.label,
        clips=len(files),
        logs=len({log.location for log in logs if log is not None}),
        bytes=sum(file.bytes for file in files),
        new=new,
        state=job.state,
        reason=str(job.reason or ""),
        message=job.message,
    )
