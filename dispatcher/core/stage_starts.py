"""Which of the stages that wait on one host start there now. Pure; touches nothing but its ledger.

Priority, then what has the smallest share of the host's running stages (acquisition and kind, so
that neither stitches nor segments starve), then what came first. What does not fit never blocks
what does, but for one case: a job that is here for longer than the policy's patience comes before
the others, and keeps what it lacks for itself when the end of our own stages will give it enough.
Otherwise small stages could take turns for ever on the only device that holds a large one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from dispatcher.core.ledger import Ledger, Refusal
from dispatcher.core.model import Job, Reason, Reservation, Step
from dispatcher.core.need import GPU_STAGES, Need
from dispatcher.core.policy import SLOT_OF, device_stage, share_key
from dispatcher.core.views import GpuView, released

# What ends with our own stages, and under which name it is kept for a job; a GPU: its UUID.
_KEPT = {Reason.RAM_LOW: "RAM", Reason.CPU_BUSY: "cores", Reason.DISK_LOW: "disk"}


def start_all(ledger: Ledger, now: float) -> None:
    """Decide afresh: fills the ledger's `starts`, `movers` and `kept`, promises what starts."""
    ledger.forget_decision()
    ledger.movers = {}
    waits = [j for j in ledger.residents.values() if j.step is Step.PLACE and j.not_before <= now]
    running = Counter(share_key(j) for j in ledger.residents.values() if j.reservation is not None)
    refused: set[Reason] = set()
    for job in _in_order(waits, running, ledger.policy.patience_s, now):
        outcome = _try(ledger, job)
        if isinstance(outcome, Reservation):
            ledger.promise(outcome)
            ledger.starts.append(outcome)
            running[share_key(job)] += 1
            continue
        refused.add(outcome[0])
        if _must_move(ledger, outcome):
            ledger.movers[job.id] = outcome
        elif job.assigned_at + ledger.policy.patience_s <= now:
            _keep(ledger, job, outcome[0])
    # What was refused is refused beside what started later, too, but for cores: a device that gets
    # work gives back the one that was left to it.
    ledger.final = not ledger.kept and Reason.CPU_BUSY not in refused


def why_not(ledger: Ledger, job: Job) -> Refusal | None:
    """Why the job's next stage did not start in the last decision."""
    outcome = _try(ledger, job)
    return None if isinstance(outcome, Reservation) else outcome


def why_not_on(ledger: Ledger, job: Job, gpu: GpuView) -> Refusal | None:
    """The first test that this device, or its host, failed for the job's next stage."""
    refusal = ledger.shut(assigning=False) or useless(ledger, job, gpu) or _no_slot(ledger, job)
    if refusal is not None:
        return refusal
    offer = _offer(ledger, job, gpu)
    return None if isinstance(offer, Need) else offer


def useless(ledger: Ledger, job: Job, gpu: GpuView) -> Refusal | None:
    """Why the device cannot be used for the job, whatever else is there."""
    if gpu.quarantine is not None:
        return Reason.GPU_QUARANTINED, f"{gpu.uuid} is {gpu.quarantine.line}"
    if not ledger.holds(gpu, job):
        need = ledger.policy.need(job, gpu, device_stage(job)).vram_mib
        return Reason.NO_GPU_FITS, (
            f"{gpu.uuid} needs {need} MiB, has {gpu.total_mib} total "
            f"({ledger.host.headroom_mib} headroom)"
        )
    if not ledger.usable(gpu):
        return Reason.PROBE_STALE, (
            f"{gpu.uuid} was last probed {gpu.probe_age_s:.0f} s ago "
            f"(limit {ledger.policy.probe_stale_s:.0f} s)"
        )
    return None


def _came(job: Job) -> tuple[float, float, str]:
    return job.assigned_at, job.created_at, job.id


def _in_order(
    jobs: Iterable[Job], share: Counter[tuple[str, str]], patience_s: float, now: float
) -> Iterator[Job]:
    """The caller raises `share` for what it started. Those past the patience come as they came."""
    levels: dict[tuple[int, bool], dict[tuple[str, str], list[Job]]] = {}
    for job in sorted(jobs, key=_came, reverse=True):
        overdue = job.assigned_at + patience_s <= now
        queues = levels.setdefault((job.priority, overdue), defaultdict(list))
        queues[("", "") if overdue else share_key(job)].append(job)
    for level in sorted(levels, reverse=True):
        queues = levels[level]
        while queues:
            key = min(queues, key=lambda k: (share[k], *_came(queues[k][-1])))
            yield queues[key].pop()
            if not queues[key]:
                del queues[key]


def _try(ledger: Ledger, job: Job) -> Reservation | Refusal:
    on_device = job.stage in GPU_STAGES
    slot = SLOT_OF[job.stage]
    refusal = ledger.shut(assigning=False)
    if refusal is None and on_device:
        refusal = ledger.unfit(job) or ledger.suspect(job)
    refusal = refusal or _no_slot(ledger, job)
    if refusal is not None:
        return refusal
    return _on_device(ledger, job, slot) if on_device else _on_host(ledger, job, slot)


def _no_slot(ledger: Ledger, job: Job) -> Refusal | None:
    """Why the host has no place for the stage, whatever its devices have left."""
    slot = SLOT_OF[job.stage]
    if refusal := ledger.small_ram(job, only_next=True):
        return refusal
    used, limit = ledger.slots_used(slot), ledger.limit(slot)
    return (Reason.SLOT_BUSY, f"runs {used} of {limit} {slot} stages") if used >= limit else None


def _on_host(ledger: Ledger, job: Job, slot: str) -> Reservation | Refusal:
    """A stage without a device. What it decodes takes sessions of one all the same, where they are
    free: the CPU decodes as well, so that nothing waits for them."""
    need = ledger.policy.need(job, None)
    refusal = _short(ledger, job, need, None)
    if refusal is not None:
        return refusal
    sessions = need.decode_sessions
    able = [
        gpu
        for gpu in ledger.host.gpus
        if sessions and ledger.usable(gpu) and ledger.free_sessions(gpu) >= sessions
    ]
    gpu = max(able, key=lambda g: (ledger.free_sessions(g), g.uuid), default=None)
    return _reservation(ledger, job, slot, need, gpu, sessions=sessions if gpu else 0)


def _on_device(ledger: Ledger, job: Job, slot: str) -> Reservation | Refusal:
    fitting: list[tuple[GpuView, Need]] = []
    refused: list[Refusal] = []
    for gpu in filter(ledger.usable, ledger.host.gpus):
        offer = _offer(ledger, job, gpu)
        if isinstance(offer, Need):
            fitting.append((gpu, offer))
        else:
            refused.append(offer)
    if fitting:
        gpu, need = min(fitting, key=lambda one: _preference(ledger, *one))
        return _reservation(ledger, job, slot, need, gpu, sessions=need.decode_sessions)
    # Nearest to starting: memory is there and something else is missing.
    reason = next((r for r, _ in refused if r is not Reason.GPU_BUSY), Reason.GPU_BUSY)
    return reason, "; ".join(dict.fromkeys(text for one, text in refused if one is reason))


def _offer(ledger: Ledger, job: Job, gpu: GpuView) -> Need | Refusal:
    """What the stage takes of a usable device that has it now, else what is short."""
    need, holder = ledger.policy.need(job, gpu), ledger.kept.get(gpu.uuid)
    if ledger.free_mib(gpu) < need.vram_mib:
        return Reason.GPU_BUSY, ledger.explain(gpu, job)
    if holder not in (None, job.id):
        return _kept(gpu.uuid, holder or "")
    return _short(ledger, job, need, gpu) or need


def _preference(ledger: Ledger, gpu: GpuView, need: Need) -> tuple[float, int, str]:
    free = ledger.free_mib(gpu)
    match ledger.policy.order:
        case "earliest_finish":
            return need.seconds.likely, -free, gpu.uuid
        case "most_free":
            return 0.0, -free, gpu.uuid
        case "best_fit":
            return 0.0, free, gpu.uuid


def _short(ledger: Ledger, job: Job, need: Need, gpu: GpuView | None) -> Refusal | None:
    """Which of disk, RAM and cores is short for the stage, or kept for another job."""
    ram, cores = ledger.ram_need(need, gpu), ledger.cores_need(need, device=gpu is not None)
    if need.disk_bytes and (refusal := ledger.full_disk(need.disk_bytes)):
        return refusal
    if refusal := ledger.low_ram(ram):
        return refusal
    if refusal := ledger.busy_cores(cores, device=gpu is not None):
        return refusal
    for what, asked in (("disk", need.disk_bytes), ("RAM", ram), ("cores", cores)):
        holder = ledger.kept.get(what)
        # A stage on a device needs few cores and is what a GPU waits for.
        if asked and holder not in (None, job.id) and not (what == "cores" and gpu is not None):
            return _kept(what, holder or "")
    return None


def _kept(what: str, holder: str) -> Refusal:
    return Reason.SLOT_BUSY, f"{what} is kept for {holder}, which has waited for long"


def _reservation(
    ledger: Ledger, job: Job, slot: str, need: Need, gpu: GpuView | None, *, sessions: int
) -> Reservation:
    on_device = job.stage in GPU_STAGES
    known_cores, known_ram = ledger.host.cpu_cores > 0, ledger.host.ram_total_mib > 0
    return Reservation(
        job=job.id,
        attempt=job.attempt + 1,
        host=ledger.host.name,
        slot=slot,
        gpu=gpu.uuid if gpu is not None else None,
        mib=need.vram_mib if on_device else 0,
        disk_bytes=need.disk_bytes,
        cpu_cores=ledger.cores_need(need, device=on_device) if known_cores else 0.0,
        ram_mib=ledger.ram_need(need, gpu) if known_ram else 0,
        decode_sessions=sessions,
    )


def _must_move(ledger: Ledger, refusal: Refusal) -> bool:
    """A host that shows no device at all may only fail to read it."""
    host, policy = ledger.host, ledger.policy
    if not host.reachable:
        return host.silent_s > policy.leave_silent_s
    if host.draining or (host.quarantine is not None and host.quarantine.failed_test):
        return True
    if refusal[0] is Reason.RAM_TOO_SMALL:
        return True
    return refusal[0] is Reason.NO_GPU_FITS and (bool(host.gpus) or not host.gpu_error)


def _keep(ledger: Ledger, job: Job, reason: Reason) -> None:
    """Keep what the job lacks, if our own stages are what has it."""
    if reason is Reason.GPU_BUSY:
        devices = [g for g in ledger.host.gpus if _after_ours(ledger, g, job)]
        if devices:
            nearest = max(devices, key=lambda g: (ledger.free_mib(g), g.uuid))
            ledger.kept.setdefault(nearest.uuid, job.id)
    elif reason in _KEPT and _would_fit_alone(ledger, job):
        ledger.kept.setdefault(_KEPT[reason], job.id)


def _after_ours(ledger: Ledger, gpu: GpuView, job: Job) -> bool:
    """Whether the device holds the job once all that we promised on it has ended."""
    if not ledger.usable(gpu):
        return False
    need = ledger.policy.need(job, gpu).vram_mib
    return _alone(ledger).free_mib(gpu) >= need


def _would_fit_alone(ledger: Ledger, job: Job) -> bool:
    return isinstance(_try(_alone(ledger), job), Reservation)


def _alone(ledger: Ledger) -> Ledger:
    """The host as it will be when what we run there has ended."""
    return Ledger(released(ledger.host, ledger.promises.keys()), ledger.policy)
