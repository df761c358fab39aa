"""What became of an acquisition: its segments and stitches with their numbers and files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dispatcher.core.model import Job, JobState
from dispatcher.core.plan import StitchLevel
from dispatcher.errors import CosmaError
from dispatcher.store.base import Store
from dispatcher.store.rows import Segment, Stitch

RELEASE = "cosma job retry {job}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentResult:
    """One reconstruction. `sfm`, `training` and `verdict` are the reports of its stages, {} without
    one."""

    job: Job
    segment: Segment
    sfm: Mapping[str, Any]
    training: Mapping[str, Any]
    verdict: Mapping[str, Any]
    seconds: float  # wall time of all its attempts
    trimmed_bytes: int | None  # given back by fstrim after its files were removed
    files: Mapping[str, Path]  # artifact kind -> local copy

    @property
    def figures(self) -> dict[str, Any]:
        """As every summary tells them; None where its stage made none."""
        return {
            **{key: self.sfm.get(key) for key in ("frames", "registered", "reprojection_px")},
            **{key: self.training.get(key) for key in ("psnr", "ssim", "gaussians")},
            "seconds": round(self.seconds, 1),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StitchResult:
    """A pass-through has no job of its own: its files are those of its one segment."""

    stitch: Stitch
    job: Job | None
    files: Mapping[str, Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    segments: tuple[SegmentResult, ...]
    stitches: tuple[StitchResult, ...]

    @property
    def complete(self) -> bool:
        """All segments and all stitches are done, and with two AUVs or more there is a scene."""
        levels = {item.stitch.level for item in self.stitches}
        auvs = {item.segment.auv for item in self.segments}
        states = [item.job.state for item in self.segments]
        newest = {(s.level, s.auv): s for s in (item.stitch for item in self.stitches)}
        states += [stitch.state for stitch in newest.values()]  # they come in order of version
        return (
            bool(self.segments)
            and all(state is JobState.DONE for state in states)
            and (len(auvs) < 2 or StitchLevel.CROSS_AUV in levels)
        )

    @property
    def jobs(self) -> tuple[Job, ...]:
        own = [item.job for item in self.segments]
        return (*own, *(item.job for item in self.stitches if item.job is not None))


async def load_results(store: Store, acquisition: str) -> Results:
    """In the order of AUV and segment label. Raises CosmaError for a report that is not JSON."""
    jobs = {job.id: job for job in await store.load_jobs(acquisition=acquisition)}
    segments = await store.segments(acquisition=acquisition)
    stitches = await store.stitches(acquisition=acquisition)
    files = {job: await _files(store, job) for job in jobs}
    return Results(
        segments=tuple(
            [
                await _segment_result(store, segment, jobs[segment.job], files[segment.job])
                for segment in sorted(segments, key=lambda s: (s.auv, s.gopro_serial, s.label))
            ]
        ),
        stitches=tuple(
            StitchResult(
                stitch=stitch,
                job=jobs.get(stitch.job or ""),
                files=files.get(stitch.members[0] if stitch.passthrough else stitch.id, {}),
            )
            for stitch in sorted(stitches, key=lambda s: (s.auv is None, s.auv or "", s.version))
        ),
    )


async def _segment_result(
    store: Store, segment: Segment, job: Job, files: Mapping[str, Path]
) -> SegmentResult:
    return SegmentResult(
        job=job,
        segment=segment,
        sfm=_json(files.get("sfm_report")),
        training=_json(files.get("training_report")),
        verdict=_json(files.get("verdict")),
        seconds=sum(metrics.wall_s for metrics in await store.stage_metrics(job.id)),
        trimmed_bytes=await store.given_back(job.id),
        files=files,
    )


async def _files(store: Store, job: str) -> dict[str, Path]:
    rows = await store.artifacts(job=job)
    return {row.kind: Path(row.local_path) for row in rows if row.local_path is not None}


def _json(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise CosmaError(
            "cannot read a collected report", where=str(path), why=str(error)
        ) from None
