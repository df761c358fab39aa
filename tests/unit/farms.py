"""Hosts and jobs for the tests of placement."""

from __future__ import annotations

import dataclasses

from dispatcher.core.model import Job, JobKind, JobState, Reservation, Stage, Step
from dispatcher.core.need import GPU_STAGES, Need, Needs, Span
from dispatcher.core.policy import SLOT_OF
from dispatcher.core.views import GpuView, HostView, Quarantine

GIB = 1 << 30
NOW = 1000.0
SUSPECT = Quarantine(line="quarantined since 10:00:00Z: 3 fast failures")
UNFIT = dataclasses.replace(SUSPECT, failed_test=True)


def gpu(uuid: str = "GPU-1", total: int = 11000, **values: object) -> GpuView:
    base = GpuView(uuid=uuid, name="x", kind="cuda", total_mib=total, free_mib=total)
    return dataclasses.replace(base, **values)  # type: ignore[arg-type]


def host(name: str = "gpu-a", *gpus: GpuView, **values: object) -> HostView:
    base = HostView(name=name, reachable=True, gpus=gpus or (gpu(),), disk_free_bytes=100 * GIB)
    return dataclasses.replace(base, **values)  # type: ignore[arg-type]


def job(name: str, **values: object) -> Job:
    base = Job(
        id=name, kind=JobKind.RECONSTRUCT, acquisition="dive", name=name, auv="a", created_at=0.0
    )
    return dataclasses.replace(base, **values)  # type: ignore[arg-type]


def at(name: str, stage: Stage, where: str = "gpu-a", **values: object) -> Job:
    """A job that waits on its host for `stage`."""
    return job(name, host=where, stage=stage, **{"state": JobState.RUNNING, **values})


def running(name: str, stage: Stage, mib: int = 0, device: str | None = None) -> Job:
    reservation = Reservation(
        job=name, attempt=1, host="gpu-a", slot=SLOT_OF[stage], gpu=device, mib=mib
    )
    return at(name, stage, step=Step.RUN, attempt=1, reservation=reservation)


class Hungry(Needs):
    """Stages that want something of everything, more of it the more frames a job has."""

    def of(self, job: Job, gpu: GpuView | None) -> Need:
        large = 1 + job.frames // 100
        on_device = gpu is not None and job.stage in GPU_STAGES
        return Need(
            vram_mib=(job.need_mib or 3000 + 300 * large) if gpu is not None else 0,
            cpu_cores=1.0 if on_device else 0.5 * large,
            ram_mib=job.need_ram_mib or 1000 * large,
            disk_bytes=job.input_bytes if job.stage is Stage.FRAME_EXTRACTION else GIB // 2,
            decode_sessions=1 if job.stage is Stage.FRAME_EXTRACTION else 0,
            seconds=Span(low=10.0 * large, likely=20.0 * large, high=40.0 * large),
            runs=50,
        )


class Choosy(Hungry):
    """And a large device is much faster."""

    def of(self, job: Job, gpu: GpuView | None) -> Need:
        need = super().of(job, gpu)
        likely = need.seconds.likely * (12_000 / gpu.total_mib if gpu is not None else 1.0)
        span = Span(low=0.5 * likely, likely=likely, high=2.0 * likely)
        return dataclasses.replace(need, seconds=span)
