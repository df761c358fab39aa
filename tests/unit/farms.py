"""Hosts and jobs for the tests of placement."""

from __future__ import annotations

import dataclasses

from dispatcher.core.model import Job, JobKind, JobState, Reservation, Stage, Step
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
    return job(name, host=where, state=JobState.RUNNING, stage=stage, **values)


def running(name: str, stage: Stage, mib: int = 0, device: str | None = None) -> Job:
    reservation = Reservation(
        job=name, attempt=1, host="gpu-a", slot=SLOT_OF[stage], gpu=device, mib=mib
    )
    return at(name, stage, step=Step.RUN, attempt=1, reservation=reservation)
