"""What one host has left, and every reason for it to say no. Pure.

Memory of a device (and the host's RAM) fits when

    min(free - promises not yet used, total - all promises - foreign use) - headroom >= need

where a promise (Reservation) counts as used by what is seen of that attempt's own processes. A
device of kind "cpu" is the host's RAM: what is promised on it counts once, as RAM.
"""

from __future__ import annotations

import math

from dispatcher.core.memory import materialised, promised_to
from dispatcher.core.model import Job, JobKind, Reason, Reservation, Stage, Step
from dispatcher.core.need import Need
from dispatcher.core.pipeline import JUST, SPARE, prefetch, wait_s
from dispatcher.core.policy import Ahead, Policy, device_stage, model_of, stages_ahead
from dispatcher.core.views import GpuView, HostView

Refusal = tuple[Reason, str]
_GIB = float(1 << 30)


class Ledger:
    """One host: what it shows, the jobs it has, what was promised of it."""

    def __init__(self, host: HostView, policy: Policy) -> None:
        self.host = host
        self.policy = policy
        self.residents: dict[str, Job] = {}  # not settled, this is their host
        self.coming: dict[str, Job] = {}  # given this host by the last decision
        self.promises: dict[tuple[str, int], Reservation] = {}  # those of the last decision, too
        self.starts: list[Reservation] = []  # the last decision's
        self.final = False  # once these are told, a decision on this host would change nothing
        self.movers: dict[str, Refusal] = {}  # residents that this host will not serve, and why
        self.kept: dict[str, str] = {}  # GPU UUID, "RAM", "cores", "disk" -> job it is kept for
        self._ahead: dict[str, Ahead] = {}  # of the jobs whose main stage is still ahead here
        self._wait_s: float | None = None  # known until a job comes or goes
        self._spoken_for: int | None = None
        self._has_enough: bool | None = None

    # --- jobs and promises ---

    def show(self, host: HostView) -> None:
        """What a newer probe says."""
        known, self.host = self.host, host
        self._wait_s = self._spoken_for = self._has_enough = None
        if [*map(model_of, known.gpus)] != [*map(model_of, host.gpus)]:
            for job in (*self.residents.values(), *self.coming.values()):
                self._reckon(job)

    def learn(self, policy: Policy) -> None:
        """Other needs."""
        self.policy = policy
        for job in (*self.residents.values(), *self.coming.values()):
            self._reckon(job)

    def adopt(self, job: Job) -> None:
        self.residents[job.id] = job
        self._reckon(job)
        if job.reservation is not None and job.reservation.host == self.host.name:
            self.promise(job.reservation)

    def release(self, job: Job) -> None:
        self.residents.pop(job.id, None)
        self._forget(job.id)
        if job.reservation is not None:
            self.promises.pop((job.id, job.reservation.attempt), None)

    def expect(self, job: Job) -> None:
        self.coming[job.id] = job
        self._reckon(job)

    def expect_no_more(self, job: str) -> None:
        self.coming.pop(job, None)
        if job not in self.residents:
            self._forget(job)

    def _reckon(self, job: Job) -> None:
        self._forget(job.id)
        if device_stage(job) is not None or job.kind is JobKind.STITCH:
            self._ahead[job.id] = self.policy.ahead(job, self.host.gpus)

    def _forget(self, job: str) -> None:
        self._ahead.pop(job, None)
        self._wait_s = self._spoken_for = self._has_enough = None

    def promise(self, reservation: Reservation) -> None:
        self.promises[reservation.job, reservation.attempt] = reservation

    def forget_decision(self) -> None:
        """Take back what the last decision started here; what came of it is told as jobs."""
        for one in self.starts:
            resident = self.residents.get(one.job)
            if resident is None or resident.reservation is None:
                self.promises.pop((one.job, one.attempt), None)
        self.starts = []
        self.kept = {}
        self._has_enough = None  # it knows who is to leave

    # --- the pipeline: how much is in it, how long it takes ---

    def bytes_missing(self, job: Job) -> int:
        return max(0, job.input_bytes - self.host.cached_bytes.get(job.id, 0))

    def _on_the_wire(self) -> list[Job]:
        travelling = [job for job in self.residents.values() if job.step is Step.TRANSFER]
        return [*travelling, *self.coming.values()]

    @property
    def arriving_bytes(self) -> int:
        return sum(self.bytes_missing(job) for job in self._on_the_wire())

    def limit(self, slot: str) -> int:
        gpus = max(1, len(self.host.gpus))
        return self.host.max_parallel.get(
            slot, gpus if slot == "train" else self.policy.slots[slot]
        )

    def slots_used(self, slot: str) -> int:
        return sum(one.slot == slot for one in self.promises.values())

    @property
    def busy_rounds(self) -> int:
        """How many jobs one after the other each device has before it."""
        return len(self._ahead) // max(1, len(self.host.gpus))

    @property
    def wait_s(self) -> float:
        """Until a job that came now would find a device free: the device seconds of all that are
        before it, or the longest line for one of the other slots."""
        if self._wait_s is None:
            self._wait_s = wait_s(self._ahead.values(), len(self.host.gpus), self.limit)
        return self._wait_s

    @property
    def has_enough(self) -> bool:
        """Whether it is kept busy without a further job."""
        if self._has_enough is None:
            self._has_enough = self.room(spare=JUST) is not None
        return self._has_enough

    def room(self, spare: float = SPARE) -> Refusal | None:
        """Why no further job may come, whatever it is. `spare`: how many times as many jobs come
        before their turn as a steady pipeline needs."""
        gpus = len(self.host.gpus)
        wire = len(self._on_the_wire())
        if wire > gpus:
            return Reason.SLOT_BUSY, f"has {wire} jobs on the wire (limit {gpus + 1})"
        # What this host will not serve waits for another, for ever where there is none.
        heading = len(self._ahead) - sum(job in self._ahead for job in self.movers)
        if not gpus:
            limit = self.limit("extract") + 1
            if heading < limit:
                return None
            return Reason.SLOT_BUSY, f"holds {heading} jobs (limit {limit}: it has no GPU)"
        ahead = max(self.policy.prefetch, prefetch(self._ahead.values(), gpus, self.limit, spare))
        if heading < gpus + ahead:
            return None
        return Reason.SLOT_BUSY, (
            f"holds {heading} jobs (limit {gpus + ahead}: {gpus} GPU + {ahead} prefetched)"
        )

    # --- what is left ---

    def free_mib(self, gpu: GpuView) -> int:
        """What may still be promised on this device, headroom taken off."""
        if gpu.kind == "cpu" and self.host.ram_total_mib:
            return self.free_ram_mib() - self.host.headroom_mib
        reserved, unused, own = self._use(gpu)
        by_device = gpu.free_mib - unused
        by_ledger = gpu.total_mib - reserved - gpu.foreign_mib - own
        return min(by_device, by_ledger) - self.host.headroom_mib

    def _use(self, gpu: GpuView) -> tuple[int, int, int]:
        """MiB: promised or used under a promise; promised and not yet used; used without one."""
        promised = {k: r.mib for k, r in self.promises.items() if r.gpu == gpu.uuid}
        return materialised(promised, gpu.own_mib)

    def free_ram_mib(self) -> int:
        """What may still be promised of the host's RAM."""
        host = self.host
        promised = {key: one.ram_mib for key, one in self.promises.items()}
        reserved, unused, own = materialised(promised, host.ram_own_mib)
        seen = sum(host.ram_own_mib.values())
        foreign = max(0, host.ram_total_mib - host.ram_free_mib - seen)
        return min(host.ram_free_mib - unused, host.ram_total_mib - reserved - foreign - own)

    def free_cores(self) -> float:
        return self.host.cpu_cores - math.fsum(one.cpu_cores for one in self.promises.values())

    def free_sessions(self, gpu: GpuView) -> int:
        """Of the device's video decoder."""
        used = sum(r.decode_sessions for r in self.promises.values() if r.gpu == gpu.uuid)
        return gpu.max_decode_sessions - gpu.decode_sessions - used

    def free_disk(self) -> int:
        """Bytes, with the reserve taken off."""
        promised = sum(one.disk_bytes for one in self.promises.values())
        left = self.host.disk_free_bytes - promised - self.arriving_bytes
        return left - self.host.disk_reserve_bytes

    def open_disk(self) -> int:
        """Bytes for jobs that are not here yet: all that those which are here will still write, at
        most, taken off. So each of these can end, whatever the order of their stages."""
        if self._spoken_for is None:
            mine = (*self.residents.values(), *self.coming.values())
            growth = sum(self.policy.disk_ahead(job) for job in mine)
            self._spoken_for = growth + self.arriving_bytes
        return self.host.disk_free_bytes - self._spoken_for - self.host.disk_reserve_bytes

    def idle_disk(self) -> int:
        """Bytes for a job that would be here alone: what the others have here, about as much as was
        brought for them, is gone by then."""
        brought = sum(job.input_bytes for job in self.residents.values())
        return self.host.disk_free_bytes + brought - self.host.disk_reserve_bytes

    @property
    def roomiest_mib(self) -> int:
        usable = [gpu for gpu in self.host.gpus if self.usable(gpu)] or self.host.gpus
        return max((self.free_mib(gpu) for gpu in usable), default=0)

    # --- what it could ever hold ---

    def usable(self, gpu: GpuView) -> bool:
        return gpu.quarantine is None and gpu.probe_age_s <= self.policy.probe_stale_s

    def holds(self, gpu: GpuView, job: Job) -> bool:
        """Whether this device could hold the job if nothing else used it."""
        if gpu.quarantine is not None and gpu.quarantine.failed_test:
            return False
        need = self.policy.need(job, gpu, device_stage(job)).vram_mib
        return gpu.total_mib - self.host.headroom_mib >= need

    def capable(self, job: Job) -> bool:
        """Whether the host could hold the job if nothing else used it."""
        return self.unfit(job) is None and self.small_ram(job) is None

    def ram_need(self, need: Need, gpu: GpuView | None) -> int:
        """What a device of kind "cpu" is asked for is RAM, asked for once."""
        on_ram = gpu is not None and gpu.kind == "cpu"
        return max(need.ram_mib, need.vram_mib) if on_ram else need.ram_mib

    def cores_need(self, need: Need, *, device: bool) -> float:
        """A stage runs on fewer cores, too, only longer; one per device is left to its stages."""
        most = self.host.cpu_cores
        return min(need.cpu_cores, float(most if device else max(1, most - len(self.host.gpus))))

    # --- reasons ---

    def shut(self, *, assigning: bool) -> Refusal | None:
        """Why nothing can start here now, whatever the job."""
        host = self.host
        if not host.reachable:
            reason = host.unreachable_reason or Reason.HOST_UNREACHABLE
            return reason, host.unreachable_message or "cannot be reached"
        if host.draining:
            return Reason.HOST_DRAINING, f"is being drained (cosma worker resume {host.name})"
        if assigning and host.cordoned:
            command = f"cosma worker resume {host.name}"
            lifts = "by the inventory" if host.cordoned_in_inventory else command
            return Reason.HOST_CORDONED, f"is cordoned ({lifts})"
        if host.quarantine is not None:
            # With a failed self-test nothing here gets better by waiting.
            unfit = host.quarantine.failed_test
            return Reason.HOST_NOT_READY if unfit else Reason.HOST_QUARANTINED, (
                f"is {host.quarantine.line}"
            )
        if not host.ready:
            return Reason.HOST_NOT_READY, host.not_ready_message or "lacks what the stages need"
        if host.probe_age_s > self.policy.probe_stale_s:
            return Reason.PROBE_STALE, self._stale(host.probe_age_s)
        return host.storage

    def _stale(self, age_s: float) -> str:
        return f"was last probed {age_s:.0f} s ago (limit {self.policy.probe_stale_s:.0f} s)"

    def unfit(self, job: Job) -> Refusal | None:
        """Why no device here can ever hold the job."""
        stage = device_stage(job)
        if stage is None or any(self.holds(gpu, job) for gpu in self.host.gpus):
            return None
        if not self.host.gpus:
            why = f": {self.host.gpu_error}" if self.host.gpu_error else ""
            return Reason.NO_GPU_FITS, f"reports no device to train on{why}"
        sizes = "; ".join(
            f"{gpu.uuid} needs {self.policy.need(job, gpu, stage).vram_mib} MiB, "
            f"has {gpu.total_mib} total"
            if gpu.quarantine is None
            else f"{gpu.uuid} is {gpu.quarantine.line}"
            for gpu in self.host.gpus
        )
        return Reason.NO_GPU_FITS, f"{sizes} ({self.host.headroom_mib} headroom)"

    def suspect(self, job: Job) -> Refusal | None:
        """Why no device that could hold the job may be used before a self-test, or a new probe."""
        if device_stage(job) is None:
            return None
        holding = [gpu for gpu in self.host.gpus if self.holds(gpu, job)]
        if any(self.usable(gpu) for gpu in holding):
            return None
        lines = [f"{g.uuid} is {g.quarantine.line}" for g in self.host.gpus if g.quarantine]
        old = [f"{g.uuid} {self._stale(g.probe_age_s)}" for g in holding if not g.quarantine]
        reason = Reason.PROBE_STALE if old else Reason.GPU_QUARANTINED
        return reason, "; ".join([*old, *lines])

    def small_ram(self, job: Job, *, only_next: bool = False) -> Refusal | None:
        """Why the host's RAM can never hold a stage ahead of the job."""
        usable = self.usable_ram_mib
        for stage in stages_ahead(job)[: 1 if only_next else None] if usable else ():
            need = self.least_ram(job, stage)
            if need > usable:
                total = self.host.ram_total_mib
                return Reason.RAM_TOO_SMALL, (
                    f"{stage} needs {need} MiB of RAM, has {total} total, {total - usable} of them "
                    "left to the system"
                )
        return None

    @property
    def usable_ram_mib(self) -> int:
        """All but what is left to the system, a thirty-second at most; hosts of one kind have the
        same."""
        total = self.host.ram_total_mib
        shift = max(0, total.bit_length() - 6)
        return total >> shift << shift

    def least_ram(self, job: Job, stage: Stage) -> int:
        """MiB that `stage` takes on the device where it takes the least, of those that hold it."""
        gpus = self.host.gpus if stage is device_stage(job) else ()
        on = [gpu for gpu in gpus if self.holds(gpu, job)] or gpus
        needs = [self.ram_need(self.policy.need(job, gpu, stage), gpu) for gpu in on]
        return min(needs) if needs else self.policy.need(job, None, stage).ram_mib

    def full_disk(self, need: int, *, assigning: bool = False) -> Refusal | None:
        free = self.open_disk() if assigning else self.free_disk()
        if free >= need:
            return None
        reserve = self.host.disk_reserve_bytes
        whose = ", ".join(sorted((self.residents | self.coming).keys())[:4]) if assigning else ""
        kept = f" beside what {whose} will still take" if whose else ""
        return Reason.DISK_LOW, (
            f"needs {need / _GIB:.2f} GiB and {reserve / _GIB:.2f} GiB in reserve, has "
            f"{(free + reserve) / _GIB:.2f} GiB of disk left{kept}: {need - free} bytes are missing"
        )

    def low_ram(self, need: int) -> Refusal | None:
        if not self.host.ram_total_mib or not need or self.free_ram_mib() >= need:
            return None
        promised = {key: one.ram_mib for key, one in self.promises.items()}
        reserved, _, _ = materialised(promised, self.host.ram_own_mib)
        total, free = self.host.ram_total_mib, self.free_ram_mib()
        return Reason.RAM_LOW, (
            f"needs {need} MiB of RAM, free {free} MiB ({total} total, "
            f"{reserved} reserved{promised_to(self.promises.values(), 'ram_mib')}, "
            f"{total - reserved - free} used by others)"
        )

    def busy_cores(self, need: float, *, device: bool) -> Refusal | None:
        """A stage without a device leaves a core to each device that has nothing to do."""
        total, free = self.host.cpu_cores, self.free_cores()
        if not total or free >= need + (0 if device else self._idle_devices()):
            return None
        if not device and free >= need and free == total:
            return None  # the one stage that runs at all
        kept = "" if free < need else f", {self._idle_devices()} kept for idle GPUs"
        return Reason.CPU_BUSY, f"needs {need:g} cores, free {free:g} of {total}{kept}"

    def _idle_devices(self) -> int:
        working = {one.gpu for one in self.promises.values() if one.mib}
        return sum(gpu.uuid not in working for gpu in self.host.gpus)

    def explain(self, gpu: GpuView, job: Job) -> str:
        """Why the device's memory does not hold the job now, and whose memory it is."""
        need, free = self.policy.need(job, gpu).vram_mib, self.free_mib(gpu)
        if gpu.kind == "cpu" and self.host.ram_total_mib:
            return (self.low_ram(need + self.host.headroom_mib) or (None, ""))[1]
        reserved, _, orphaned = self._use(gpu)
        holders = "".join(f", {mib} held by {whose}" for whose, mib in gpu.holders)
        return (
            f"{gpu.uuid} needs {need} MiB, free {free} MiB ({gpu.total_mib} total, "
            f"{reserved} reserved{promised_to(self.promises.values(), 'mib', gpu.uuid)}, "
            f"{gpu.foreign_mib + orphaned} foreign{holders}, {self.host.headroom_mib} headroom)"
        )

    def refuse(self, job: Job, missing: int, *, helper: bool = False) -> Refusal | None:
        """Why the job cannot be given this host now; None: it can. `missing`: bytes to bring. A
        `helper` without a GPU only works on the stages before a device is needed."""
        return (
            self.shut(assigning=True)
            or (None if helper else self.unfit(job) or self.suspect(job))
            or self.small_ram(job)
            or self.full_disk(missing, assigning=True)
            or self.room()
        )
