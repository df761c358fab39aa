"""Jobs x hosts -> who goes where now, and a reason with numbers for every job left out.

Pure and deterministic: the same snapshot gives the same decision. A device fits when

    min(free - promises not yet used, total - all promises - foreign use) - headroom >= need

where a promise (Reservation) counts as used by what the device shows for that attempt's own
processes. Memory is promised only while a stage that uses it runs.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dispatcher.core.ledger import GPU_STAGES, SLOT_OF, Ledger, Policy
from dispatcher.core.model import SETTLED, Job, Reason, Reservation, Stage, Step, Waiting
from dispatcher.core.views import GpuView, HostView

__all__ = ["GPU_STAGES", "SLOT_OF", "Placement", "Policy", "place"]

# How near a host was to taking the job: the nearest one gives the job its reason.
_NEARNESS = (
    Reason.HOST_DRAINING,
    Reason.HOST_CORDONED,
    Reason.HOST_NOT_READY,
    Reason.PROBE_STALE,
    Reason.NO_GPU_FITS,
    Reason.HOST_QUARANTINED,
    Reason.GPU_QUARANTINED,
    Reason.DISK_LOW,
    Reason.SLOT_BUSY,
    Reason.GPU_BUSY,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What to do now. An assignment of a job that has a host moves it."""

    assignments: tuple[tuple[str, str], ...]  # (job, host)
    stages: tuple[Reservation, ...]  # attempt = job.attempt + 1
    waiting: tuple[Waiting, ...]


def place(
    jobs: Iterable[Job],
    hosts: Iterable[HostView],
    reservations: Iterable[Reservation],
    policy: Policy,
    now: float,
) -> Placement:
    """Decide for every job at Step.PLACE; `now` is wall clock, as Job.not_before is."""
    everyone = sorted(jobs, key=lambda job: job.id)
    ledgers = {host.name: Ledger(host, policy) for host in sorted(hosts, key=lambda h: h.name)}
    for reservation in reservations:
        if reservation.host in ledgers:
            ledgers[reservation.host].promise(reservation)
    for job in everyone:
        if job.host in ledgers and job.state not in SETTLED:
            ledgers[job.host].adopt(job)
    ready = [job for job in everyone if job.step is Step.PLACE and job.not_before <= now]
    waiting = [_backoff(j, now) for j in everyone if j.step is Step.PLACE and j.not_before > now]

    stages: list[Reservation] = []
    assignments: list[tuple[str, str]] = []
    running = Counter(job.acquisition for job in everyone if job.reservation is not None)
    for job in _in_order((j for j in ready if j.host is not None), running):
        outcome = _start(job, ledgers, policy)
        if isinstance(outcome, Reservation):
            stages.append(outcome)
            running[job.acquisition] += 1
            continue
        target = _move(job, outcome, ledgers, policy)
        if isinstance(target, Ledger):
            assignments.append((job.id, target.host.name))
            target.adopt(job, arriving=True)
        else:
            waiting.append(target)

    held = Counter(j.acquisition for j in everyone if j.host and j.state not in SETTLED)
    for job in _in_order((j for j in ready if j.host is None), held):
        chosen = _choose_host(job, ledgers)
        if isinstance(chosen, Ledger):
            assignments.append((job.id, chosen.host.name))
            chosen.adopt(job, arriving=True)
            held[job.acquisition] += 1
        else:
            waiting.append(chosen)
    return Placement(
        assignments=tuple(assignments),
        stages=tuple(stages),
        waiting=tuple(sorted(waiting, key=lambda w: w.job)),
    )


def _in_order(jobs: Iterable[Job], share: Counter[str]) -> Iterator[Job]:
    """Priority, then the acquisition with the smallest share, then age. The caller raises `share`
    for what it placed; a job that finds no place never blocks the next one."""
    levels: dict[int, dict[str, list[Job]]] = defaultdict(lambda: defaultdict(list))
    for job in sorted(jobs, key=lambda j: (j.created_at, j.id), reverse=True):
        levels[job.priority][job.acquisition].append(job)
    for priority in sorted(levels, reverse=True):
        queues = levels[priority]
        heap = [_rank(queue[-1], share) for queue in queues.values()]
        heapq.heapify(heap)
        while heap:
            queue = queues[heapq.heappop(heap)[-1]]
            yield queue.pop()
            if queue:
                heapq.heappush(heap, _rank(queue[-1], share))


def _rank(oldest: Job, share: Counter[str]) -> tuple[int, float, str, str]:
    return (share[oldest.acquisition], oldest.created_at, oldest.id, oldest.acquisition)


def _backoff(job: Job, now: float) -> Waiting:
    after = f" after {job.reason}: {job.message}" if job.reason is not None else ""
    return Waiting(
        job=job.id,
        reason=Reason.BACKOFF,
        message=f"tries again in {job.not_before - now:.0f} s{after}",
        per_host={job.host: "waits for its delay to pass"} if job.host else {},
    )


def _choose_host(job: Job, ledgers: dict[str, Ledger]) -> Ledger | Waiting:
    """A host with an idle device before one where the job must queue; among equals the one with
    the most free device memory, then the fewest jobs, then the first by name.

    A host that failed this job is taken only when no other could ever take it.
    """
    refusals: dict[str, tuple[Reason, str]] = {}
    others = (
        [
            ledger.host.name
            for ledger in ledgers.values()
            if ledger.host.name not in job.avoid_hosts
            and not ledger.shut(assigning=True)
            and ledger.capable(job)
        ]
        if job.avoid_hosts
        else []
    )
    best: tuple[int, int, int, str] | None = None
    for name, ledger in ledgers.items():
        refusal = ledger.refuse(job)
        if refusal is None and others and name in job.avoid_hosts:
            refusal = (Reason.SLOT_BUSY, f"failed this job before; waits for {', '.join(others)}")
        if refusal is not None:
            refusals[name] = refusal
            continue
        roomiest = max(ledger.free_mib(gpu) for gpu in ledger.host.gpus if ledger.holds(gpu, job))
        ahead = ledger.residents // len(ledger.host.gpus)  # jobs before it on each device
        rank = (ahead, -roomiest, ledger.residents, name)
        if best is None or rank < best:
            best = rank
    if best is not None:
        return ledgers[best[-1]]
    if not ledgers:
        return Waiting(
            job=job.id,
            reason=Reason.NO_HOST,
            message="the inventory has no host (cosma worker add)",
        )
    return _waiting(job, refusals)


def _start(job: Job, ledgers: dict[str, Ledger], policy: Policy) -> Reservation | Waiting:
    """Promise the job's next stage its slot and its device on the host it has."""
    name = job.host or ""
    ledger = ledgers.get(name)
    if ledger is None:
        gone = (Reason.NO_HOST, "is no longer in the inventory; add it again or cancel the job")
        return _waiting(job, {name: gone})
    slot = SLOT_OF[job.stage]
    # The frames of a video take less than the video, and no other stage's output is as large.
    disk = job.input_bytes if job.stage is Stage.FRAME_EXTRACTION else 0
    refusal = ledger.shut(assigning=False)
    if refusal is None and disk:
        refusal = ledger.full_disk(disk)
    if refusal is None and job.stage in GPU_STAGES:
        refusal = ledger.unfit(job) or ledger.suspect(job)
    if refusal is None and ledger.slots_used[slot] >= ledger.limit(slot):
        refusal = (
            Reason.SLOT_BUSY,
            (f"runs {ledger.slots_used[slot]} of {ledger.limit(slot)} {slot} stages"),
        )
    if refusal is not None:
        return _waiting(job, {name: refusal})
    gpu: GpuView | None = None
    if job.stage in GPU_STAGES:
        fitting = [
            g
            for g in ledger.host.gpus
            if g.quarantine is None and ledger.free_mib(g) >= policy.need_mib(job, g)
        ]
        if not fitting:
            busy = "; ".join(ledger.explain(g, job) for g in ledger.host.gpus)
            return _waiting(job, {name: (Reason.GPU_BUSY, busy)})
        gpu = min(fitting, key=lambda g: (-ledger.free_mib(g), g.uuid))
    reservation = Reservation(
        job=job.id,
        attempt=job.attempt + 1,
        host=name,
        slot=slot,
        gpu=gpu.uuid if gpu else None,
        mib=policy.need_mib(job, gpu) if gpu else 0,
        disk_bytes=disk,
    )
    ledger.promise(reservation)
    return reservation


def _move(
    job: Job, outcome: Waiting, ledgers: dict[str, Ledger], policy: Policy
) -> Ledger | Waiting:
    """Another host for a job that its own host will not serve, or why it stays there.

    It stays while its host may yet serve it, and where no other host could ever take it.
    """
    own = ledgers.get(job.host or "")
    if own is None or not _must_move(outcome, own.host, policy):
        return outcome
    others = {
        name: ledger
        for name, ledger in ledgers.items()
        if ledger is not own and not ledger.shut(assigning=True) and ledger.capable(job)
    }
    if not others:
        return dataclasses.replace(
            outcome, message=f"{outcome.message}; no other host could take it now"
        )
    target = _choose_host(job, others)
    if isinstance(target, Waiting):
        target = dataclasses.replace(target, per_host={**outcome.per_host, **target.per_host})
    return target


def _must_move(outcome: Waiting, host: HostView, policy: Policy) -> bool:
    """A host that shows no device at all may only fail to read it."""
    if not host.reachable:
        return host.silent_s > policy.leave_silent_s
    if host.draining or (host.quarantine is not None and host.quarantine.failed_test):
        return True
    return outcome.reason is Reason.NO_GPU_FITS and bool(host.gpus)


def _waiting(job: Job, refusals: dict[str, tuple[Reason, str]]) -> Waiting:
    nearest = max(refusals, key=lambda name: (_nearness(refusals[name][0]), -len(name), name))
    first = [nearest, *(name for name in refusals if name != nearest)]
    shown = "; ".join(f"{name}: {refusals[name][1]}" for name in first[:3])
    more = f"; and {len(first) - 3} more hosts" if len(first) > 3 else ""
    return Waiting(
        job=job.id,
        reason=refusals[nearest][0],
        message=shown + more,
        per_host={name: f"{name}: {text}" for name, (_, text) in refusals.items()},
    )


def _nearness(reason: Reason) -> int:
    return _NEARNESS.index(reason) if reason in _NEARNESS else -1
