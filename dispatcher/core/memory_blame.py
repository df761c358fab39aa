"""Whose fault it is that a GPU's memory ran out: the job's, or that of others on the GPU. Pure."""

from __future__ import annotations

import dataclasses

from dispatcher.core.events import AttemptFailed
from dispatcher.core.model import Job, Reason, Step
from dispatcher.core.views import GpuView


def in_doubt(job: Job, event: AttemptFailed) -> bool:
    """Whether the job's GPU must be looked at first. One of kind "cpu" has no memory of its own."""
    promise = job.reservation
    return (
        event.reason is Reason.GPU_OUT_OF_MEMORY
        and not event.looked
        and event.attempt == job.attempt
        and job.step is not Step.CANCEL
        and promise is not None
        and promise.gpu is not None
        and not promise.gpu.startswith("CPU-")
    )


def after_a_look(
    job: Job, event: AttemptFailed, gpu: GpuView | None, peak_mib: float | None
) -> AttemptFailed:
    """`gpu` as it is now that the attempt has ended; None: it could not be looked at. `peak_mib`:
    the most that was seen of the attempt's own use.

    Others are to blame when what they leave is less than what the job was promised:
    total - foreign use - use of our other attempts < promise. Headroom does not count, it is there
    to be used up; nor does what the job took beyond its promise: that is its own need.
    """
    looked = dataclasses.replace(event, looked=True)
    promise = job.reservation
    if gpu is None or promise is None or (peak_mib or 0.0) > promise.mib:
        return looked
    ours = sum(mib for key, mib in gpu.own_mib.items() if key != (job.id, event.attempt))
    left = gpu.total_mib - gpu.foreign_mib - ours
    if left >= promise.mib:
        return looked
    holders = "".join(f", {mib} MiB held by {whose}" for whose, mib in gpu.holders)
    return dataclasses.replace(
        looked,
        reason=Reason.GPU_MEMORY_TAKEN,
        message=(
            f"{event.message}: of {promise.mib} MiB promised on {gpu.uuid} {max(0, left)} are left "
            f"({gpu.total_mib} total, {ours} of other jobs, {gpu.foreign_mib} foreign{holders})"
        ),
        advice="",  # the stage's own is for a job that is too large
    )
