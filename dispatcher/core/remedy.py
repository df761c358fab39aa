"""The cheapest change that would start a waiting job now: each is tried on the snapshot. Pure.

Nothing is promised that a decision did not confirm on the changed snapshot. Cheapest first: a
higher priority, a host let in again, memory that others give back, a smaller plan, one more host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dispatcher.core import whatif
from dispatcher.core.board import Board
from dispatcher.core.model import Job, JobKind, Stage, Step
from dispatcher.core.snapshot import Snapshot
from dispatcher.core.views import GpuView, HostView
from dispatcher.core.work_size import MAX_SHRINK, shape_of

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


class _Trial:
    """A board of the snapshot, on which changed ones are tried and taken back. None of the
    changes tried here takes a host or a job away."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._board = Board(snapshot.policy)
        self._put(snapshot.jobs, snapshot.hosts)

    def _put(self, jobs: Iterable[Job], hosts: Iterable[HostView]) -> None:
        for host in hosts:
            self._board.put_host(host)
        for job in jobs:
            self._board.put_job(job)

    def starts(self, changed: Snapshot, job: str) -> bool:
        """Whether the next decision on the changed snapshot places the job."""
        known = self.snapshot
        kept_jobs, kept_hosts = {*map(id, known.jobs)}, {*map(id, known.hosts)}
        self._put(
            (one for one in changed.jobs if id(one) not in kept_jobs),
            (host for host in changed.hosts if id(host) not in kept_hosts),
        )
        decided = self._board.decide(changed.now)
        placed = {name for name, _ in decided.assignments} | {one.job for one in decided.stages}
        self._take_back(changed)
        return job in placed

    def _take_back(self, changed: Snapshot) -> None:
        names = {host.name: host for host in self.snapshot.hosts}
        after_jobs, after_hosts = {*map(id, changed.jobs)}, {*map(id, changed.hosts)}
        for host in changed.hosts:
            if host.name not in names:
                self._board.drop_host(host.name)
        self._put(
            (one for one in self.snapshot.jobs if id(one) not in after_jobs),
            (host for host in self.snapshot.hosts if id(host) not in after_hosts),
        )

    def helps(self, job: Job, what_if: str) -> bool:
        return self.starts(whatif.apply(self.snapshot, whatif.parse(what_if)), job.id)


def starts_now(snapshot: Snapshot, job: str) -> bool:
    """Whether the next decision on this snapshot places the job."""
    return _Trial(snapshot).starts(snapshot, job)


def remedies(snapshot: Snapshot, job: Job) -> list[Remedy]:
    """All that work, cheapest first; none for a job that does not wait for a place."""
    if job.step is not Step.PLACE:
        return []
    trial = _Trial(snapshot)
    if trial.starts(snapshot, job.id):
        return []
    return [
        *_priority(trial, job),
        *_resume(trial, job),
        *_free(trial, job),
        *_smaller(trial, job),
        *_add(trial, job),
    ]


def _priority(trial: _Trial, job: Job) -> Iterator[Remedy]:
    ahead = [
        one.priority for one in trial.snapshot.jobs if one.step is Step.PLACE and one is not job
    ]
    above = max(ahead, default=job.priority) + 1
    words = f"priority {job.id} {above}"
    if above > job.priority and trial.helps(job, words):
        yield Remedy(
            line=f"put it before the others (priority {above})",
            what_if=words,
            command=f"cosma job priority {job.id} {above}",
        )


def _resume(trial: _Trial, job: Job) -> Iterator[Remedy]:
    shut = [
        host
        for host in trial.snapshot.hosts
        if host.cordoned or host.quarantine or any(gpu.quarantine for gpu in host.gpus)
    ]
    for host in shut[:TRIED]:
        if trial.helps(job, f"resume {host.name}"):
            yield Remedy(
                line=f"let {host.name} have work again",
                what_if=f"resume {host.name}",
                command=f"cosma worker resume {host.name}",
            )


def _free(trial: _Trial, job: Job) -> Iterator[Remedy]:
    """Least memory first."""
    used = [
        (host, gpu)
        for host in trial.snapshot.hosts
        for gpu in host.gpus
        if gpu.foreign_mib > 0 and job.host in (None, host.name)
    ]
    found: list[tuple[int, HostView, GpuView]] = []
    for host, gpu in used[:TRIED]:
        if not trial.helps(job, f"free {gpu.foreign_mib} MiB on {gpu.uuid}"):
            continue
        least, enough = 0, gpu.foreign_mib
        while enough - least > FREE_STEP_MIB:
            middle = (least + enough) // 2
            if trial.helps(job, f"free {middle} MiB on {gpu.uuid}"):
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


def _smaller(trial: _Trial, job: Job) -> Iterator[Remedy]:
    if job.kind is not JobKind.RECONSTRUCT:
        return
    for steps in range(job.shrink + 1, MAX_SHRINK + 1):
        smaller = dataclasses.replace(job, shrink=steps)
        jobs = tuple(smaller if one.id == job.id else one for one in trial.snapshot.jobs)
        if trial.starts(dataclasses.replace(trial.snapshot, jobs=jobs), job.id):
            cap = shape_of(smaller, Stage.TRAINING).cap
            yield Remedy(
                line=f"a smaller plan: at most {cap} gaussians (train.cuda.cap at ingest)"
                if cap
                else "a smaller plan (train.cuda.cap at ingest)"
            )
            return


def _add(trial: _Trial, job: Job) -> Iterator[Remedy]:
    for gib in SIZES_GIB:
        if trial.helps(job, f"add host with {gib} GiB"):
            yield Remedy(
                line=f"one more host with {gib} GiB of GPU memory",
                what_if=f"add host with {gib} GiB",
                command="cosma worker add NAME ADDRESS",
            )
            return
