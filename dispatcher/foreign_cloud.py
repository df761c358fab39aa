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
    look = await asyncio.to_thread(_look, file)
    survey = slug(acquisition)
    job_id = slug(survey, auv, name)
    size, sha256 = await asyncio.to_thread(_size_and_hash, file)
    added = Added(
        job=job_id, acquisition=survey, auv=auv, segment=name, kind=look[0], count=look[1],
        bytes=size, sha256=sha256, new=await store.job(job_id) is None,
    )  # fmt: skip
    if not added.new and await _complete(store, added):
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
        provenance={"added_from": str(file), "sha256": sha256}, created_at=now,
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
    if not file.is_file():
        raise UsageError("no such file", where=str(file))
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


async def _complete(store: Store, added: Added) -> bool:
    """Whether the segment of this name has this very result; not when adding it was cut off.
    Raises UsageError for any other."""
    rows = [row for row in await store.artifacts(job=added.job) if row.kind == "ply"]
    run = await store.run(added.job)
    meant = run.provenance.get("sha256") if run else None
    if added.sha256 != (rows[0].sha256 if rows else meant):
        raise UsageError(
            "another segment has this name", where=f"{added.auv}/{added.segment}",
            why=f"job {added.job} has another result", fix="give it one of its own: --name NAME",
        )  # fmt: skip
    return bool(rows)


def _size_and_hash(file: Path) -> tuple[int, str]:
    try:
        return file.stat().st_size, file_sha256(file)
    except OSError as error:
        raise UsageError("cannot be read", where=str(file), why=error.strerror or "") from None


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
