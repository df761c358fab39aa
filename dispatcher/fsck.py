"""What differs between the database, the hosts and the artifact store; and what of it can be put
right without losing anything."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dispatcher.artifact_store import KEPT_KINDS, LOG, store_of
from dispatcher.clock import SystemClock
from dispatcher.core.events import InputsKept, ReclaimFailed
from dispatcher.core.machine import LIVE_STEPS, step
from dispatcher.core.model import TERMINAL, Job, Reservation
from dispatcher.core.place import GPU_STAGES, SLOT_OF, Policy
from dispatcher.core.reconcile import DIFFERENCES, Kind, reconcile
from dispatcher.core.views import GpuView
from dispatcher.errors import HostError, TakenOver
from dispatcher.executors.transfer import file_sha256
from dispatcher.file_expiry import GivingBack
from dispatcher.fleet import Fleet
from dispatcher.job_log import job_log
from dispatcher.jobspec import JobSpecs
from dispatcher.learning import Learning
from dispatcher.object_store import ObjectStore
from dispatcher.provenance import Provenance
from dispatcher.reclaim import Reclaimer
from dispatcher.reconcile import seen_of
from dispatcher.store.base import Store
from dispatcher.store.rows import ArtifactRow, Attempt, Lease
from dispatcher.trims import Trims
from worker_agent.protocol import AttemptRef, AttemptState

ANSWER_S = 60.0  # for a host to list its attempts
STIMULUS = "fsck"  # of what a repair changes in a job

_SELF = "a running dispatcher sees to it: cosma dispatch; or, without one, cosma fsck --fix"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """`repaired` once it is no more; `advice` is what to do where that cannot be done here."""

    kind: str
    job: str
    where: str  # a host, a file, or the table
    message: str
    attempt: int | None = None
    advice: str = ""
    repairable: bool = False
    repaired: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    differences: tuple[Difference, ...]
    unanswered: Mapping[str, str]  # host -> why
    hosts: int
    jobs: int

    @property
    def left(self) -> tuple[Difference, ...]:
        return tuple(item for item in self.differences if not item.repaired)


def book_differences(jobs: Sequence[Job], leases: Sequence[Lease]) -> list[Difference]:
    """Pure: what the database says of itself that cannot be. A live attempt has exactly one
    reservation and one lease; nothing else has any."""
    found = []
    held = {(lease.job, lease.attempt) for lease in leases}
    for job in jobs:
        live = job.step in LIVE_STEPS
        if live and job.reservation is None:
            text = f"attempt {job.attempt} is live and has no reservation"
            found.append(_book("reservation_missing", job.id, text))
        if not live and job.reservation is not None:
            text = f"a reservation of attempt {job.reservation.attempt}, which is over"
            found.append(_book("reservation_stray", job.id, text))
        if live and (job.id, job.attempt) not in held:
            text = f"attempt {job.attempt} is live and has no lease"
            found.append(replace(_book("lease_missing", job.id, text), repairable=False,
                                 advice="it counts from the dispatcher's next start"))  # fmt: skip
    live_attempts = {(job.id, job.attempt) for job in jobs if job.step in LIVE_STEPS}
    for key in sorted(held - live_attempts):
        found.append(_book("lease_stray", key[0], f"a lease of attempt {key[1]}, which is over"))
    return found


def inputs_left(jobs: Sequence[Job]) -> list[Difference]:
    """Pure: source bytes on the hosts of jobs that have ended."""
    return [
        Difference(
            kind="inputs_left",
            job=job.id,
            where=job.host or "",
            message=f"inputs of a job that is {job.state} lie on {job.host}",
            advice=_SELF,
            repairable=True,
        )
        for job in jobs
        if job.state in TERMINAL and job.inputs_on_host
    ]


def leftovers(jobs: Sequence[Job]) -> list[Difference]:
    """Pure: copies on hosts that jobs have left, of what lies verified elsewhere."""
    return [
        Difference(
            kind="leftovers",
            job=job.id,
            where=host,
            message=f"a copy of what the job made lies on {host}, which it has left",
            advice=_SELF,
            repairable=True,
        )
        for job in jobs
        for host in job.leftovers
    ]


def promise(attempt: Attempt, job: Job, gpus: Sequence[GpuView], policy: Policy) -> Reservation:
    """Pure: what a live attempt whose reservation is lost would be promised now. `gpus`: of its
    host."""
    devices = [gpu for gpu in gpus if gpu.uuid == attempt.gpu and attempt.stage in GPU_STAGES]
    gpu = next(iter(devices), None)
    need = policy.need(job, gpu, attempt.stage)
    on_ram = gpu is not None and gpu.kind == "cpu"
    return Reservation(
        job=job.id,
        attempt=attempt.attempt,
        host=attempt.host,
        slot=SLOT_OF[attempt.stage],
        gpu=attempt.gpu,
        mib=need.vram_mib,
        disk_bytes=need.disk_bytes,
        cpu_cores=need.cpu_cores,
        ram_mib=max(need.ram_mib, need.vram_mib) if on_ram else need.ram_mib,
        decode_sessions=need.decode_sessions if attempt.gpu is not None else 0,
    )


def _book(kind: str, job: str, message: str) -> Difference:
    return Difference(kind=kind, job=job, where="database", message=message, repairable=True)


async def check(store: Store, fleet: Fleet) -> Report:
    """Changes nothing, anywhere."""
    jobs = await store.load_jobs()
    found = [*book_differences(jobs, await store.leases()), *inputs_left(jobs), *leftovers(jobs)]
    found += await _artifact_differences(await store.artifacts())
    names = [state.host.name for state in fleet.states]
    answers = await asyncio.gather(*(_host_differences(store, fleet, name) for name in names))
    unanswered = {}
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, str):
            unanswered[name] = answer
        else:
            found += answer
    return Report(differences=tuple(found), unanswered=unanswered, hosts=len(names), jobs=len(jobs))


async def _host_differences(store: Store, fleet: Fleet, host: str) -> list[Difference] | str:
    """The differences, or why the host did not answer."""
    before = {job.id: job for job in await store.load_jobs()}
    try:
        async with asyncio.timeout(ANSWER_S):
            statuses = await fleet.executor(host).list_attempts()
    except TimeoutError:
        return f"no answer within {ANSWER_S:g} s"
    except HostError as error:
        return error.line
    after = {job.id: job for job in await store.load_jobs()}
    advice = {
        "unknown": f"nothing touches it; look at it and remove it by hand on {host}",
        "superseded": _SELF,
        "absent": "it is given up when its lease has run out; or cosma job retry JOB --abandon",
    }
    return [
        Difference(
            kind=f"attempt_{finding.kind}",
            job=finding.job,
            where=host,
            message=f"attempt {finding.attempt}: {finding.message}",
            attempt=finding.attempt,
            advice=advice[finding.kind.value].replace("JOB", finding.job),
            repairable=finding.kind is Kind.SUPERSEDED,
        )
        for finding in reconcile(host, before, seen_of(statuses), after)
        if finding.kind in DIFFERENCES
    ]


async def _artifact_differences(rows: Sequence[ArtifactRow]) -> list[Difference]:
    found = []
    for row in rows:
        if row.kind not in KEPT_KINDS or row.local_path is None:
            continue
        kind, message = await asyncio.to_thread(_artifact_state, row, Path(row.local_path))
        if kind:
            found.append(
                Difference(
                    kind=kind, job=row.job, where=row.local_path, message=message, repairable=True
                )
            )
    return found


def _artifact_state(row: ArtifactRow, path: Path) -> tuple[str, str]:
    try:
        size = path.stat().st_size
        if size != row.bytes:
            return "artifact_changed", f"{size} bytes, {row.bytes} were collected"
        found = file_sha256(path)
    except FileNotFoundError:
        return "artifact_missing", "the file is gone"
    except OSError as error:
        return "artifact_changed", f"it cannot be read: {error.strerror}"
    if found != row.sha256:
        return "artifact_changed", f"sha256 {found[:16]}…, {row.sha256[:16]}… was collected"
    return "", ""


async def repair(
    store: Store, fleet: Fleet, report: Report, remote: ObjectStore | None = None
) -> Report:
    """What can be put right safely; the caller holds the dispatcher's lock. Nothing is deleted
    but rows that speak of attempts that are over, and inputs as a dispatcher would remove them; a
    changed file is kept beside the good one."""
    rows = {row.local_path: row for row in await store.artifacts() if row.local_path}
    jobs = {job.id: job for job in await store.load_jobs()}
    # That of the dispatcher before: a new one would take the hosts from another database's.
    epoch = await store.last_epoch()
    done = []
    # What still runs goes first: it may read what is removed after it.
    for item in sorted(report.differences, key=lambda item: item.kind != "attempt_superseded"):
        if not item.repairable:
            done.append(item)
        elif item.kind == "attempt_superseded":
            done.append(await _end(fleet, jobs[item.job], epoch, item))
        elif item.kind in ("inputs_left", "leftovers"):
            done.append(await _reclaim(store, fleet, jobs[item.job], epoch, item))
        elif item.kind == "lease_stray":
            await store.delete_stray_leases()
            done.append(replace(item, repaired=True))
        elif item.kind == "reservation_stray":
            await store.delete_reservation(item.job)
            done.append(replace(item, repaired=True))
        elif item.kind == "reservation_missing":
            await _rebuild(store, jobs[item.job])
            done.append(replace(item, repaired=True))
        else:
            why = await _collect_again(store, fleet, jobs[item.job], rows[item.where], remote)
            again = f"{why}; make it again: cosma job rerun {item.job} --from STAGE"
            done.append(replace(item, repaired=not why, advice=again if why else ""))
    return replace(report, differences=tuple(done))


async def _end(fleet: Fleet, job: Job, epoch: int, item: Difference) -> Difference:
    """As a dispatcher would: the job's own row says that this attempt is over."""
    try:
        executor = fleet.executor(item.where)
        run_dir = f"{await executor.work_dir()}/{job.acquisition}/{job.id}"
        status = await executor.cancel(
            AttemptRef(run_dir=run_dir, attempt=item.attempt or 0), epoch=epoch
        )
    except (HostError, TakenOver) as error:
        return replace(item, advice=error.line)
    return replace(item, repaired=status.state is not AttemptState.RUNNING)


async def _reclaim(
    store: Store, fleet: Fleet, job: Job, epoch: int, item: Difference
) -> Difference:
    specs = JobSpecs(store, lambda _: None)
    clock = SystemClock()
    reclaimer = Reclaimer(
        fleet=fleet,
        specs=specs,
        giving_back=GivingBack(fleet, specs, clock),
        trims=Trims(fleet, store, clock),  # the next dispatcher takes it up
        provenance=Provenance(fleet, specs),
        clock=clock,
        epoch=epoch,
    )
    remove = reclaimer.leftovers if item.kind == "leftovers" else reclaimer.reclaim
    try:
        event = await remove(job, item.where, STIMULUS, tries=1)
    except TakenOver as error:
        return replace(item, advice=error.line)
    if isinstance(event, InputsKept):
        return replace(item, advice=f"they stay by its rule for source_videos: {event.rule}")
    if isinstance(event, ReclaimFailed):
        return replace(item, advice=event.message)
    # Another repair may have changed the job: of one that left two hosts, say.
    now = await store.job(job.id)
    if now is not None:
        after, _ = step(now, event)
        await store.apply(now, after, event)
    return replace(item, repaired=True)


async def _rebuild(store: Store, job: Job) -> None:
    """From the attempt's own row, and what such a stage is taken to need."""
    (attempt,) = [a for a in await store.attempts(job.id) if a.attempt == job.attempt]
    gpus = [gpu.device for gpu in await store.gpus(attempt.host)]
    policy = Policy(needs=(await Learning.from_store(store)).needs)
    await store.rebuild_reservation(promise(attempt, job, gpus, policy))


async def _collect_again(
    store: Store, fleet: Fleet, job: Job, row: ArtifactRow, remote: ObjectStore | None
) -> str:
    """Why the file is not as it was collected; "" once it is. One that was changed is kept beside
    it."""
    local = Path(row.local_path or "")
    artifacts = store_of(local, job.acquisition, job.id)
    fresh = local.with_name(f".{local.name}.again")
    try:
        await asyncio.to_thread(local.parent.mkdir, parents=True, exist_ok=True)
        if await asyncio.to_thread(artifacts.holds, row.sha256):
            await asyncio.to_thread(artifacts.offer, fresh, row.sha256, row.bytes)
        elif remote is not None and row.remote_url == remote.url_of(row.sha256):
            await asyncio.to_thread(remote.get, row.sha256, fresh)
        elif row.path == LOG:
            text = await job_log(store, await store.attempts(job.id))
            await asyncio.to_thread(fresh.write_bytes, text)
            if await asyncio.to_thread(file_sha256, fresh) != row.sha256:
                return "the job has run on since"
        else:
            executor = fleet.executor(row.host or "")
            run_dir = f"{await executor.work_dir()}/{job.acquisition}/{job.id}"
            await executor.collect_file(run_dir, row.path, fresh, sha256=row.sha256)
        await asyncio.to_thread(_put_in_place, fresh, local)
        await asyncio.to_thread(artifacts.keep, local, row.sha256)
    except HostError as error:
        return error.message
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return ""


def _put_in_place(fresh: Path, local: Path) -> None:
    if local.exists():
        local.replace(_free_name(local))
    fresh.replace(local)


def _free_name(path: Path) -> Path:
    number = 1
    while (other := path.with_name(f"{path.name}.changed-{number}")).exists():
        number += 1
    return other
