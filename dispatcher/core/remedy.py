"""The cheapest change that would start a waiting job now: each is tried on the snapshot. Pure.

Nothing is promised that `place` did not confirm on the changed snapshot. Cheapest first: a higher
priority, a host let in again, memory that others give back, a smaller plan, one more host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from dispatcher.core import whatif
from dispatcher.core.model import Job, JobKind, Stage, Step
from dispatcher.core.place import place
from dispatcher.core.retry import SHRINK_STEPS
from dispatcher.core.shape import shape_of
from dispatcher.core.snapshot import Snapshot
from dispatcher.core.views import GpuView, HostView

SIZES_GIB = (8, 12, 16, 24, 32, 48, 80, 96, 141)  # GPUs that can be bought
FREE_STEP_MIB = 64
TRIED = 16  # hosts or GPUs of one kind of change: a farm of a thousand has many alike


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """A change that was seen to start the job. `what_if` says it to `cosma plan`, "" where that
    has no words for it; `command` does it, "" where no command can."""

    line: str
    what_if: str = ""
    command: str = ""


def starts_now(snapshot: Snapshot, job: str) -> bool:
    """Whether the next decision on this snapshot places the job."""
    decided = place(snapshot.jobs, snapshot.hosts, snapshot.policy, snapshot.now)
    return any(name == job for name, _ in decided.assignments) or any(
        promise.job == job for promise in decided.stages
    )


def remedies(snapshot: Snapshot, job: Job) -> list[Remedy]:
    """All that work, cheapest first; none for a job that does not wait for a place."""
    if job.step is not Step.PLACE or starts_now(snapshot, job.id):
        return []
    return [
        *_priority(snapshot, job),
        *_resume(snapshot, job),
        *_free(snapshot, job),
        *_smaller(snapshot, job),
        *_add(snapshot, job),
    ]


def _helps(snapshot: Snapshot, job: Job, what_if: str) -> bool:
    return starts_now(whatif.apply(snapshot, whatif.parse(what_if)), job.id)


def _priority(snapshot: Snapshot, job: Job) -> Iterator[Remedy]:
    ahead = [one.priority for one in snapshot.jobs if one.step is Step.PLACE and one is not job]
    above = max(ahead, default=job.priority) + 1
    words = f"priority {job.id} {above}"
    if above > job.priority and _helps(snapshot, job, words):
        yield Remedy(
            line=f"put it before the others (priority {above})",
            what_if=words,
            command=f"cosma job priority {job.id} {above}",
        )


def _resume(snapshot: Snapshot, job: Job) -> Iterator[Remedy]:
    shut = [
        host
        for host in snapshot.hosts
        if host.cordoned or host.quarantine or any(gpu.quarantine for gpu in host.gpus)
    ]
    for host in shut[:TRIED]:
        if _helps(snapshot, job, f"resume {host.name}"):
            yield Remedy(
                line=f"let {host.name} have work again",
                what_if=f"resume {host.name}",
                command=f"cosma worker resume {host.name}",
            )


def _free(snapshot: Snapshot, job: Job) -> Iterator[Remedy]:
    """Least memory first."""
    used = [
        (host, gpu)
        for host in snapshot.hosts
        for gpu in host.gpus
        if gpu.foreign_mib > 0 and job.host in (None, host.name)
    ]
    found: list[tuple[int, HostView, GpuView]] = []
    for host, gpu in used[:TRIED]:
        if not _helps(snapshot, job, f"free {gpu.foreign_mib} MiB on {gpu.uuid}"):
            continue
        least, enough = 0, gpu.foreign_mib
        while enough - least > FREE_STEP_MIB:
            middle = (least + enough) // 2
            if _helps(snapshot, job, f"free {middle} MiB on {gpu.uuid}"):
                enough = middle
            else:
                least = middle
        found.append((enough, host, gpu))
    for mib, host, gpu in sorted(found, key=lambda entry: (entry[0], entry[2].uuid)):
        whose = ", ".join(f"{name}: {used} MiB" for name, used in gpu.holders)
        yield Remedy(
            line=f"free {mib} MiB on {gpu.uuid} of {host.name}" + (f" ({whose})" if whose else ""),
            what_if=f"free {mib} MiB on {gpu.uuid}",
        )


def _smaller(snapshot: Snapshot, job: Job) -> Iterator[Remedy]:
    if job.kind is not JobKind.RECONSTRUCT:
        return
    for steps in range(job.shrink + 1, SHRINK_STEPS + 1):
        smaller = dataclasses.replace(job, shrink=steps)
        jobs = tuple(smaller if one.id == job.id else one for one in snapshot.jobs)
        if starts_now(dataclasses.replace(snapshot, jobs=jobs), job.id):
            cap = shape_of(smaller, Stage.TRAINING).cap
            yield Remedy(
                line=f"a smaller plan: at most {cap} gaussians (train.cuda.cap at ingest)"
                if cap
                else "a smaller plan (train.cuda.cap at ingest)"
            )
            return


def _add(snapshot: Snapshot, job: Job) -> Iterator[Remedy]:
    for gib in SIZES_GIB:
        if _helps(snapshot, job, f"add host with {gib} GiB"):
            yield Remedy(
                line=f"one more host with {gib} GiB of GPU memory",
                what_if=f"add host with {gib} GiB",
                command="cosma worker add NAME ADDRESS",
            )
            return
