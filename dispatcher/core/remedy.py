"""The cheapest change that would start a waiting job now: each is tried on the snapshot. Pure.

Nothing is promised that a decision did not confirm on the changed snapshot. Cheapest first: a
higher priority, a host let in again, one more stage at a time on its host, what a host lacks
installed, memory that others give back, files that go, a smaller plan, one more host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dispatcher.core import whatif
from dispatcher.core.board import Board
from dispatcher.core.model import Job, JobKind, Stage, Step
from dispatcher.core.policy import SLOT_OF
from dispatcher.core.snapshot import Snapshot
from dispatcher.core.views import GpuView, HostView
from dispatcher.core.work_size import MAX_SHRINK, reduced, shape_of

SIZES_GIB = (8, 12, 16, 24, 32, 48, 80, 96, 141)  # GPUs that can be bought
FREE_STEP_MIB = 64
MOST_DISK_MIB = 1 << 24  # no job takes more
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
        try:
            changed = whatif.apply(self.snapshot, whatif.parse(what_if))
        except whatif.WhatIfError:  # there is not so much of it
            return False
        return self.starts(changed, job.id)

    def helps_as(self, job: Job, host: HostView) -> bool:
        """Whether the job starts once the host of that name is as this one."""
        hosts = tuple(host if one.name == host.name else one for one in self.snapshot.hosts)
        return self.starts(dataclasses.replace(self.snapshot, hosts=hosts), job.id)

    def least(self, job: Job, most: int, words: str) -> int | None:
        """The fewest MiB, FREE_STEP_MIB more at most, with which `words` help; None: not `most`."""
        if not self.helps(job, words.format(most)):
            return None
        least, enough = 0, most
        while enough - least > FREE_STEP_MIB:
            middle = (least + enough) // 2
            if self.helps(job, words.format(middle)):
                enough = middle
            else:
                least = middle
        return enough


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
        *_slots(trial, job),
        *_bootstrap(trial, job),
        *_free(trial, job),
        *_free_disk(trial, job),
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
        if host.cordoned_in_inventory:
            let_in = dataclasses.replace(host, cordoned=host.draining, cordoned_in_inventory=False)
            if trial.helps_as(job, let_in):
                yield Remedy(
                    line=f"let {host.name} have work: remove `cordoned: true` from its entry in "
                    "the inventory"
                )
        elif trial.helps(job, f"resume {host.name}"):
            yield Remedy(
                line=f"let {host.name} have work again",
                what_if=f"resume {host.name}",
                command=f"cosma worker resume {host.name}",
            )


def _slots(trial: _Trial, job: Job) -> Iterator[Remedy]:
    slot = SLOT_OF[job.stage]
    for host in trial.snapshot.hosts:
        if host.name != job.host or slot not in host.max_parallel:
            continue
        more = host.max_parallel[slot] + 1
        if trial.helps_as(
            job, dataclasses.replace(host, max_parallel={**host.max_parallel, slot: more})
        ):
            yield Remedy(
                line=f"let {host.name} run {more} {slot} stages at once (`max_parallel: "
                f"{{{slot}: {more}}}` in its entry in the inventory)"
            )


def _bootstrap(trial: _Trial, job: Job) -> Iterator[Remedy]:
    bare = [host for host in trial.snapshot.hosts if host.reachable and not host.ready]
    for host in bare[:TRIED]:
        if trial.helps_as(job, dataclasses.replace(host, ready=True)):
            yield Remedy(
                line=f"install on {host.name} what its stages lack",
                command=f"cosma worker bootstrap {host.name}",
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
        enough = trial.least(job, gpu.foreign_mib, f"free {{}} MiB on {gpu.uuid}")
        if enough is not None:
            found.append((enough, host, gpu))
    for mib, host, gpu in sorted(found, key=lambda entry: (entry[0], entry[2].uuid)):
        whose = ", ".join(f"{name}: {used} MiB" for name, used in gpu.holders)
        yield Remedy(
            line=f"free {mib} MiB on {gpu.uuid} of {host.name}" + (f" ({whose})" if whose else ""),
            what_if=f"free {mib} MiB on {gpu.uuid}",
        )


def _free_disk(trial: _Trial, job: Job) -> Iterator[Remedy]:
    """Least first."""
    found: list[tuple[int, str]] = []
    for host in sorted(trial.snapshot.hosts, key=lambda one: one.name != job.host)[:TRIED]:
        in_use = (host.disk_total_bytes - host.disk_free_bytes) >> 20
        most = in_use if host.disk_total_bytes else MOST_DISK_MIB
        enough = trial.least(job, most, f"free {{}} MiB of disk on {host.name}") if most else None
        if enough is not None:
            found.append((enough, host.name))
    for mib, name in sorted(found):
        yield Remedy(
            line=f"free {mib} MiB of disk on {name}", what_if=f"free {mib} MiB of disk on {name}"
        )


def _smaller(trial: _Trial, job: Job) -> Iterator[Remedy]:
    if job.kind is not JobKind.RECONSTRUCT:
        return
    for steps in range(job.shrink + 1, MAX_SHRINK + 1):
        smaller = reduced(job, shrink=steps, stride=job.stride)
        jobs = tuple(smaller if one.id == job.id else one for one in trial.snapshot.jobs)
        if trial.starts(dataclasses.replace(trial.snapshot, jobs=jobs), job.id):
            cap = shape_of(smaller, Stage.TRAINING).cap
            most = f": at most {cap} gaussians" if cap else ""
            yield Remedy(
                line=f"a smaller plan{most} (`cap` under `train:`, which is fixed at ingest)"
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
