"""A GPU is looked at again when its memory ran out, before the job is blamed for it."""

from __future__ import annotations

from dispatcher.core.events import AttemptFailed
from dispatcher.core.memory_blame import after_a_look
from dispatcher.core.model import Job, Reservation
from dispatcher.core.views import GpuView
from dispatcher.fleet import Fleet
from dispatcher.fleet_view import gpu_view
from dispatcher.store.base import Store


async def blame(fleet: Fleet, store: Store, job: Job, event: AttemptFailed) -> AttemptFailed:
    """`event` with whose memory it was, by what the last probe of the host says."""
    peaks = [
        one.peak_vram_mib
        for one in await store.stage_metrics(job.id)
        if one.attempt == event.attempt
    ]
    gpu = _gpu(fleet, job.reservation) if job.reservation is not None else None
    return after_a_look(job, event, gpu, peaks[0] if peaks else None)


def _gpu(fleet: Fleet, promise: Reservation) -> GpuView | None:
    state = fleet.state(promise.host)
    if state is None or not state.reachable or state.facts is None:
        return None
    return next((gpu_view(gpu) for gpu in state.facts.gpus if gpu.uuid == promise.gpu), None)
