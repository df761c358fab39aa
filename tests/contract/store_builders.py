"""A small acquisition and its way through the machine, for the suites of the store."""

from __future__ import annotations

from dispatcher.core import events as ev
from dispatcher.core import model as m
from dispatcher.core.machine import step
from dispatcher.core.model import Job, JobKind
from dispatcher.store.base import Store
from dispatcher.store.rows import (
    Acquisition,
    Applied,
    Clip,
    Lease,
    Run,
    Segment,
)
from worker_agent.protocol import Artifact, ExitRecord, FailureCode, StageOutcome

JOB = Job(
    id="dive-a-1", kind=JobKind.RECONSTRUCT, acquisition="dive", name="a/1", auv="a",
    created_at=1.0, input_bytes=70,
)  # fmt: skip
CLIPS = (
    Clip(name="GX010001.MP4", source="nas:/dive/GX010001.MP4", bytes=40, order=0),
    Clip(name="GX020001.MP4", source="/dive/GX020001.MP4", bytes=30, order=1, sha256="ab"),
)
SEGMENT = Segment(
    id="dive-a-1", acquisition="dive", auv="a", gopro_serial="C1", label="1", job=JOB.id,
    clips=CLIPS, created_at=1.0,
)  # fmt: skip
RUN = Run(job=JOB.id, config={"frames": {"fps": 5.0}}, sha256="cafe", created_at=1.0)


async def fill(store: Store, job: Job = JOB) -> Job:
    await store.create_acquisition(Acquisition(id="dive", name="Dive", created_at=1.0))
    await store.create_segment(SEGMENT, job, RUN)
    return job


async def advance(store: Store, job: Job, *events: ev.Event) -> Applied:
    applied = Applied(job, "")
    for event in events:
        after, _ = step(applied.job, event)
        applied = await store.apply(applied.job, after, event)
    return applied


def placed(job: Job, at: float = 3.0) -> ev.StagePlaced:
    promise = m.Reservation(
        job=job.id, attempt=job.attempt + 1, host=job.host or "h", slot="extract", gpu="GPU-1",
        mib=6000, disk_bytes=70,
    )  # fmt: skip
    return ev.StagePlaced(at=at, reservation=promise, stimulus="7")


async def running(store: Store, lease: Lease | None = None) -> Job:
    """The first attempt of the first stage, alive on host h."""
    job = await fill(store)
    job = (await advance(store, job, ev.HostAssigned(at=1.0, host="h"), ev.InputsReady(at=2.0))).job
    after, _ = step(job, placed(job))
    job = (await store.apply(job, after, placed(job), lease)).job
    return (await advance(store, job, ev.AttemptStarted(at=4.0, attempt=1))).job


def record(ok: bool = True) -> ExitRecord:
    files = (Artifact(kind="ply", path="output/x.ply", bytes=9, sha256="aa"),)
    outcome = StageOutcome(
        ok=ok, artifacts=files, metrics={"psnr": 24.5},
        reason=None if ok else FailureCode.STAGE_CRASHED,
    )  # fmt: skip
    return ExitRecord(
        attempt=1, stage="Validation", returncode=0, signal=None, cause="exited", outcome=outcome,
        started_at=4.0, ended_at=9.0, wall_s=5.0, cpu_s=8.0, peak_rss_mib=100.0,
        peak_vram_mib=4321.0, events_bytes=0, log_bytes=0, boot_id="b",
    )  # fmt: skip
