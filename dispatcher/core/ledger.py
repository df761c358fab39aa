"""What one host has left while a placement is being decided, and every reason for it to say no.

Pure. `Ledger.free_mib` is the inequality of dispatcher.core.place.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from dispatcher.core.model import Job, JobKind, Reason, Reservation, Stage, Step
from dispatcher.core.views import GpuView, HostView

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
_GIB = float(1 << 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """First guesses and limits; MiB and seconds."""

    need_reconstruct_mib: int = 6000
    need_reconstruct_cpu_mib: int = 1500  # on a device of kind "cpu"
    need_stitch_mib: int = 2000
    prefetch: int = 1  # jobs a host may hold beyond one per GPU, so that its next one is ready
    probe_stale_s: float = 120.0
    leave_silent_s: float = 600.0  # a job that waits on a host silent for longer goes elsewhere
    slots: dict[str, int] = field(  # where a host sets no max_parallel; train: one per GPU
        default_factory=lambda: {"extract": 2, "sfm": 1, "stitch": 1}
    )

    def need_mib(self, job: Job, gpu: GpuView) -> int:
        if job.need_mib is not None:
            return job.need_mib
        if job.kind is JobKind.STITCH:
            return self.need_stitch_mib
        return self.need_reconstruct_cpu_mib if gpu.kind == "cpu" else self.need_reconstruct_mib


class Ledger:
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

    def holds(self, gpu: GpuView, job: Job) -> bool:
        """Whether this device could hold the job if nothing else used it."""
        if gpu.quarantine is not None and gpu.quarantine.failed_test:
            return False
        return gpu.total_mib - self.host.headroom_mib >= self.policy.need_mib(job, gpu)

    def capable(self, job: Job) -> bool:
        """Whether a device here could hold the job if nothing else used it."""
        return any(self.holds(gpu, job) for gpu in self.host.gpus)

    def shut(self, *, assigning: bool) -> tuple[Reason, str] | None:
        """Why nothing can start here now, whatever the job."""
        host = self.host
        if not host.reachable:
            reason = host.unreachable_reason or Reason.HOST_UNREACHABLE
            return reason, host.unreachable_message or "cannot be reached"
        if host.draining:
            return Reason.HOST_DRAINING, f"is being drained (cosma worker resume {host.name})"
        if assigning and host.cordoned:
            return Reason.HOST_CORDONED, f"is cordoned (cosma worker resume {host.name})"
        if host.quarantine is not None:
            # With a failed self-test nothing here gets better by waiting.
            unfit = host.quarantine.failed_test
            return Reason.HOST_NOT_READY if unfit else Reason.HOST_QUARANTINED, (
                f"is {host.quarantine.line}"
            )
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
            if gpu.quarantine is None
            else f"{gpu.uuid} is {gpu.quarantine.line}"
            for gpu in self.host.gpus
        )
        return Reason.NO_GPU_FITS, f"{sizes} ({self.host.headroom_mib} headroom)"

    def suspect(self, job: Job) -> tuple[Reason, str] | None:
        """Why no device that could hold the job may be used before a self-test."""
        if any(gpu.quarantine is None and self.holds(gpu, job) for gpu in self.host.gpus):
            return None
        lines = [f"{g.uuid} is {g.quarantine.line}" for g in self.host.gpus if g.quarantine]
        return Reason.GPU_QUARANTINED, "; ".join(lines)

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
        if refusal := self.shut(assigning=True) or self.unfit(job) or self.suspect(job):
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
