"""A cloud that was made elsewhere becomes a segment of a survey: a member of its stitches."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

from dispatcher.artifact_store import ArtifactStore
from dispatcher.core.model import Job, JobKind, JobState, Stage, Step
from dispatcher.core.survey import slug
from dispatcher.errors import CosmaError, UsageError
from dispatcher.executors.transfer import file_sha256
from dispatcher.pair_looking import MemberFiles, ask_library
from dispatcher.settings import PipelineConfig
from dispatcher.store.base import Store
from dispatcher.store.rows import Acquisition, ArtifactRow, Run, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What became of the file."""

    job: str
    acquisition: str
    auv: str
    segment: str
    kind: str  # gaussians | points
    count: int
    bytes: int
    sha256: str
    new: bool


async def add_cloud(
    store: Store,
    artifacts: ArtifactStore,
    file: Path,
    *,
    acquisition: str,
    auv: str,
    name: str,
    config: PipelineConfig,
) -> Added:
    """Copy `file`, verified, into the artifact store, as the result of a job that is done.

    The same file again changes nothing. Raises UsageError for a file that is no cloud which a
    stitch can take, or a name that another segment has; CosmaError when it cannot be copied.
    """
    if not acquisition.strip() or not auv.strip():
        raise UsageError("the survey or the vehicle has no name", fix="give --acquisition, --auv")
    survey = slug(acquisition)
    job_id = slug(survey, auv, name)
    size, sha256 = await asyncio.to_thread(_size_and_hash, file)
    known = await _known(store, job_id, sha256, f"{auv}/{name}")
    kind, count = known[:2] if known else await asyncio.to_thread(_look, file)
    added = Added(
        job=job_id, acquisition=survey, auv=auv, segment=name, kind=kind, count=count, bytes=size,
        sha256=sha256, new=known is None,
    )  # fmt: skip
    if known is not None and known[2]:
        return added
    local = artifacts.path(survey, job_id, f"output/{job_id}.ply")
    await asyncio.to_thread(_copy, file, local, artifacts, sha256)
    now = time.time()
    await store.create_acquisition(Acquisition(id=survey, name=acquisition, created_at=now))
    segment = Segment(
        id=job_id, acquisition=survey, auv=auv, gopro_serial="", label=name, job=job_id, clips=(),
        created_at=now,
    )  # fmt: skip
    job = Job(
        id=job_id, kind=JobKind.RECONSTRUCT, acquisition=survey, name=name, auv=auv,
        created_at=now, state=JobState.DONE, step=Step.REST, stage=Stage.COMPLETED,
        cap=added.count,
    )  # fmt: skip
    text = json.dumps(config.as_dict(), sort_keys=True, separators=(",", ":"))
    run = Run(
        job=job_id, config=config.as_dict(), sha256=hashlib.sha256(text.encode()).hexdigest(),
        provenance={"added_from": str(file), "sha256": sha256, "kind": kind, "count": count},
        created_at=now,
    )  # fmt: skip
    row = ArtifactRow(
        job=job_id, kind="ply", path=f"output/{job_id}.ply", bytes=size, sha256=sha256,
        local_path=str(local),
    )  # fmt: skip
    await store.create_segment(segment, job, run)
    await store.add_artifacts(job_id, [row])
    return added


def _look(file: Path) -> tuple[str, int]:
    """(kind, points). Raises UsageError."""
    try:
        (found,) = ask_library(
            "check", [MemberFiles(name=file.stem, ply=str(file), registration=None, sha256="")]
        )
    except CosmaError as error:
        raise UsageError(
            "no cloud that a stitch can take", where=str(file), why=error.why,
            fix=error.fix or "binary PLY of gaussians, or of points with red, green, blue",
        ) from None  # fmt: skip
    return str(found["kind"]), int(found["count"])


async def _known(store: Store, job_id: str, sha256: str, name: str) -> tuple[str, int, bool] | None:
    """Kind and count of the cloud that the segment is, and whether its file lies here: not when
    adding it was cut off. None: there is no such segment. Raises UsageError when it is another."""
    job, run = await store.job(job_id), await store.run(job_id)
    if job is None or run is None:
        return None
    rows = [row for row in await store.artifacts(job=job_id) if row.kind == "ply"]
    if sha256 != (rows[0].sha256 if rows else run.provenance.get("sha256")):
        raise UsageError(
            "another segment has this name", where=name, why=f"job {job_id} has another result",
            fix="give it one of its own: --name NAME",
        )  # fmt: skip
    told = run.provenance
    return str(told.get("kind", "gaussians")), int(told.get("count", job.cap)), bool(rows)


def _size_and_hash(file: Path) -> tuple[int, str]:
    try:
        return file.stat().st_size, file_sha256(file)
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError("the cloud cannot be read", where=str(file), why=why) from None


def _copy(file: Path, local: Path, artifacts: ArtifactStore, sha256: str) -> None:
    try:
        whole = artifacts.take(file, local, sha256)
    except OSError as error:
        raise CosmaError(
            "the cloud cannot be copied", where=str(error.filename or local),
            why=error.strerror or str(error), fix="name another store with --artifacts",
        ) from None  # fmt: skip
    if not whole:
        raise UsageError("changed while it was read", where=str(file), fix="add it again")
