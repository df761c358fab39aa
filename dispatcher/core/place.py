"""Jobs x hosts -> who goes where now, and a reason with numbers for every job left out.

Pure and deterministic: the same snapshot gives the same decision. A device fits when

    min(free - promises not yet used, total - all promises - foreign use) - headroom >= need

where a promise (Reservation) counts as used by what the device shows for that attempt's own
processes. Memory is promised only while a stage that uses it runs.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from dispatcher.core.model import (
    SETTLED,
    GpuView,
    HostView,
    Job,
    JobKind,
    Reason,
    Reservation,
    Stage,
    Step,
    Waiting,
)

SLOT_OF: dict[Stage, str] = {
    Stage.VALIDATION: "extract",
    Stage.FRAME_EXTRACTION: "extract",
    Stage.METADATA_EXTRACTION: "extract",
    Stage.MANIFEST_GENERATION: "extract",
    Stage.COLMAP_RECONSTRUCTION: "sfm",
    Stage.TRAINING: "train",
    Stage.PLY_EXPORT: "extract",
    Stage.SPLAT_EXPORT: "extract",
    Stage.STITCH: "stitch",
}
GPU_STAGES = frozenset({Stage.TRAINING, Stage.STITCH})
# How near a host was to taking the job: the nearest one gives the job its reason.
_NEARNESS = (
    Reason.HOST_CORDONED,
    Reason.HOST_NOT_READY,
    Reason.PROBE_STALE,
    Reason.NO_GPU_FITS,
    Reason.DISK_LOW,
    Reason.SLOT_BUSY,
    Reason.GPU_BUSY,
)
_GIB = float(1 << 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """First guesses and limits; MiB and seconds."""

    need_reconstruct_mib: int = 6000
    need_reconstruct_cpu_mib: int = 1500  # on a device of kind "cpu"
    need_stitch_mib: int = 2000
    prefetch: int = 1  # jobs a host may hold beyond one per GPU, so that its next one is ready
    probe_stale_s: float = 120.0
    slots: dict[str, int] = field(  # where a host sets no max_parallel; train: one per GPU
        default_factory=lambda: {"extract": 2, "sfm": 1, "stitch": 1}
    )

    def need_mib(self, job: Job, gpu: GpuView) -> int:
        if job.need_mib is not None:
            return job.need_mib
        if job.kind is JobKind.STITCH:
            return self.need_stitch_mib
        return self.need_reconstruct_cpu_mib if gpu.kind == "cpu" else self.need_reconstruct_mib


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
    ledgers = {host.name: _Ledger(host, policy) for host in sorted(hosts, key=lambda h: h.name)}
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
        target = _choose_host(job, ledgers) if _must_move(job, outcome, ledgers) else outcome
        if isinstance(target, _Ledger):
            assignments.append((job.id, target.host.name))
            target.adopt(job, arriving=True)
        else:
            waiting.append(outcome)

    held = Counter(j.acquisition for j in everyone if j.host and j.state not in SETTLED)
    for job in _in_order((j for j in ready if j.host is None), held):
        chosen = _choose_host(job, ledgers)
        if isinstance(chosen, _Ledger):
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


# --- one host ---


class _Ledger:
    """What one host has left while this decision is being made."""

    def __init__(self, host: HostView, policy: Policy) -> None:
        self.host = host
        self.policy = policy
        self.residents = 0
        self.arriving_bytes = 0  # inputs on their way here, not yet on the disk
        self.disk_promised = 0
        self.slots_used: Counter[str] = Counter()
        self.promises: dict[str, list[Reservation]] = defaultdict(list)

    def promise(self, reservation: Reservation) -> None:
        self.slots_used[reservation.slot] += 1
        self.disk_promised += reservation.disk_bytes
        if reservation.gpu is not None:
            self.promises[reservation.gpu].append(reservation)

    def adopt(self, job: Job, *, arriving: bool = False) -> None:
        self.residents += 1
        if arriving or job.step is Step.TRANSFER:
            self.arriving_bytes += self.bytes_missing(job)

    def bytes_missing(self, job: Job) -> int:
        return max(0, job.input_bytes - self.host.cached_bytes.get(job.id, 0))

    def limit(self, slot: str) -> int:
        fallback = max(1, len(self.host.gpus)) if slot == "train" else self.policy.slots[slot]
        return self.host.max_parallel.get(slot, fallback)

    def free_mib(self, gpu: GpuView) -> int:
        """What may still be promised on this device, headroom taken off."""
        reserved, unused, own = self._use(gpu)
        by_device = gpu.free_mib - unused
        by_ledger = gpu.total_mib - reserved - gpu.foreign_mib - own
        return min(by_device, by_ledger) - self.host.headroom_mib

    def _use(self, gpu: GpuView) -> tuple[int, int, int]:
        """MiB: promised or used under a promise; promised and not yet used; used without one."""
        reserved = unused = 0
        promised = set()
        for reservation in self.promises[gpu.uuid]:
            key = (reservation.job, reservation.attempt)
            promised.add(key)
            used = gpu.own_mib.get(key, 0)
            reserved += max(reservation.mib, used)
            unused += max(0, reservation.mib - used)
        orphaned = sum(mib for key, mib in gpu.own_mib.items() if key not in promised)
        return reserved, unused, orphaned

    def explain(self, gpu: GpuView, job: Job) -> str:
        reserved, _, orphaned = self._use(gpu)
        return (
            f"{gpu.uuid} needs {self.policy.need_mib(job, gpu)} MiB, free {self.free_mib(gpu)} MiB "
            f"({gpu.total_mib} total, {reserved} reserved, {gpu.foreign_mib + orphaned} foreign, "
            f"{self.host.headroom_mib} headroom)"
        )

    def capable(self, job: Job) -> bool:
        """Whether a device here could hold the job if nothing else used it."""
        return any(
            gpu.total_mib - self.host.headroom_mib >= self.policy.need_mib(job, gpu)
            for gpu in self.host.gpus
        )

    def shut(self, *, assigning: bool) -> tuple[Reason, str] | None:
        """Why nothing can start here now, whatever the job."""
        host = self.host
        if not host.reachable:
            reason = host.unreachable_reason or Reason.HOST_UNREACHABLE
            return reason, host.unreachable_message or "cannot be reached"
        if assigning and host.cordoned:
            return Reason.HOST_CORDONED, f"is cordoned (cosma worker resume {host.name})"
        if not host.ready:
            return Reason.HOST_NOT_READY, host.not_ready_message or "lacks what the stages need"
        if host.probe_age_s > self.policy.probe_stale_s:
            return Reason.PROBE_STALE, (
                f"was last probed {host.probe_age_s:.0f} s ago "
                f"(limit {self.policy.probe_stale_s:.0f} s)"
            )
        return None

    def unfit(self, job: Job) -> tuple[Reason, str] | None:
        """Why no device here can ever hold the job."""
        if self.capable(job):
            return None
        if not self.host.gpus:
            return Reason.NO_GPU_FITS, "reports no device to train on"
        sizes = "; ".join(
            f"{gpu.uuid} needs {self.policy.need_mib(job, gpu)} MiB, has {gpu.total_mib} total"
            for gpu in self.host.gpus
        )
        return Reason.NO_GPU_FITS, f"{sizes} ({self.host.headroom_mib} headroom)"

    def full_disk(self, need: int) -> tuple[Reason, str] | None:
        left = self.host.disk_free_bytes - self.disk_promised - self.arriving_bytes
        if left >= need + self.host.disk_reserve_bytes:
            return None
        return Reason.DISK_LOW, (
            f"needs {need / _GIB:.2f} GiB and {self.host.disk_reserve_bytes / _GIB:.2f} GiB in "
            f"reserve, has {left / _GIB:.2f} GiB of disk left"
        )

    def refuse(self, job: Job) -> tuple[Reason, str] | None:
        """Why the job cannot be assigned here now; None: it can."""
        if refusal := self.shut(assigning=True) or self.unfit(job):
            return refusal
        if refusal := self.full_disk(self.bytes_missing(job)):
            return refusal
        gpus = len(self.host.gpus)
        limit = max(1, gpus) + self.policy.prefetch
        if self.residents >= limit:
            return Reason.SLOT_BUSY, (
                f"holds {self.residents} jobs (limit {limit}: {gpus} GPU + "
                f"{self.policy.prefetch} prefetched)"
            )
        return None


def _choose_host(job: Job, ledgers: dict[str, _Ledger]) -> _Ledger | Waiting:
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
        roomiest = max(ledger.free_mib(gpu) for gpu in ledger.host.gpus if _holds(ledger, gpu, job))
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


def _holds(ledger: _Ledger, gpu: GpuView, job: Job) -> bool:
    return gpu.total_mib - ledger.host.headroom_mib >= ledger.policy.need_mib(job, gpu)


def _start(job: Job, ledgers: dict[str, _Ledger], policy: Policy) -> Reservation | Waiting:
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
        refusal = ledger.unfit(job)
    if refusal is None and ledger.slots_used[slot] >= ledger.limit(slot):
        refusal = (
            Reason.SLOT_BUSY,
            (f"runs {ledger.slots_used[slot]} of {ledger.limit(slot)} {slot} stages"),
        )
    if refusal is not None:
        return _waiting(job, {name: refusal})
    gpu: GpuView | None = None
    if job.stage in GPU_STAGES:
        fitting = [g for g in ledger.host.gpus if ledger.free_mib(g) >= policy.need_mib(job, g)]
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


def _must_move(job: Job, outcome: Waiting, ledgers: dict[str, _Ledger]) -> bool:
    """Its host can never hold it. A host that shows no device at all may only fail to read it."""
    ledger = ledgers.get(job.host or "")
    return outcome.reason is Reason.NO_GPU_FITS and ledger is not None and bool(ledger.host.gpus)


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
