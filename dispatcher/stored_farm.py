"""The farm as the database shows it, for commands that are not the dispatcher."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dispatcher.core.machine import IllegalTransition, StaleEvent, step
from dispatcher.core.model import SETTLED, Job, Reason, Step
from dispatcher.core.place import Policy
from dispatcher.core.plan import SegmentView, Sooner, StitchView
from dispatcher.core.snapshot import Snapshot, Underway
from dispatcher.fleet_view import (
    HostState,
    SilentGpu,
    held_against,
    host_view,
    over_pool,
    pools_of,
)
from dispatcher.heartbeat import dispatcher_runs
from dispatcher.inventory import find_inventory, is_there
from dispatcher.inventory_model import Inventory, InventoryHost
from dispatcher.learning import Learning
from dispatcher.requests import DECISIONS, decided, event_of_request
from dispatcher.stitching import segment_view, sooner_of, stitch_view
from dispatcher.store.base import Store
from dispatcher.store.rows import Attempt, Gpu, Host, Progress, Request
from worker_agent.protocol import GpuFacts, GpuProcess, HostFacts, ProtocolError


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFarm:
    """Where no dispatcher runs, hosts are shown as one last saw them: not stale, but as it would
    find them if nothing has changed. `notes` say so."""

    snapshot: Snapshot
    notes: tuple[str, ...]


async def load_farm(store: Store, database: Path, inventory: Path | None) -> StoredFarm:
    """Raises InventoryError for an inventory that cannot be used.

    Without one, hosts are those the database has seen, with the defaults of the inventory.
    """
    now = time.time()
    hosts = await store.hosts()
    notes = []
    as_of = now
    if not dispatcher_runs(database, now):
        looked = [row.probed_at for row in hosts if row.probed_at is not None]
        as_of = max(looked, default=now)
        notes.append(
            "no dispatcher runs; hosts are shown as they were last seen, "
            f"{_ago(now - as_of)} ago (cosma dispatch)"
            if looked
            else "no dispatcher has seen the hosts yet (cosma dispatch)"
        )
    if is_there(inventory):
        known = find_inventory(inventory)
    else:
        known = Inventory(
            hosts=tuple(InventoryHost(name=row.name, address=row.name) for row in hosts)
        )
        notes.append("without an inventory: limits of hosts are taken to be the defaults")
    jobs = as_asked(await store.load_jobs(), await store.pending_requests(), now)
    cordons, breakers = await store.cordons(), await store.breakers()
    pools, pool_states = pools_of(known), await store.thin_pools()
    cached = _cached(jobs)
    rows = {row.name: row for row in hosts}
    devices = await store.gpus()
    ended = await _ended(store, hosts)
    views = []
    for host in known.hosts:
        state = _state(host, rows.get(host.name), as_of)
        state = dataclasses.replace(
            state, silent=tuple(_silent(state, devices)), ended=ended.get(host.name, {})
        )
        view = host_view(state, as_of, cached.get(host.name, {}))
        views.append(
            over_pool(held_against(view, cordons, breakers), host, pools, pool_states, as_of)
        )
    segments, stitches = await _survey(store, jobs)
    return StoredFarm(
        snapshot=Snapshot(
            now=now,
            jobs=tuple(jobs),
            hosts=tuple(views),
            policy=Policy(needs=(await Learning.from_store(store)).needs),
            segments=segments,
            stitches=stitches,
            sooner=await _sooner(store, segments),
            underway=await _underway(store, jobs, now),
        ),
        notes=tuple(notes),
    )


def as_asked(jobs: Iterable[Job], requests: Iterable[Request], now: float) -> list[Job]:
    """With what the operator has asked for and a dispatcher does first of all."""
    known = {job.id: job for job in jobs}
    for request in requests:
        job = known.get(request.job or "")
        if job is not None:
            with contextlib.suppress(IllegalTransition, StaleEvent, KeyError, ValueError):
                known[job.id], _ = step(job, event_of_request(request, at=now))
    return list(known.values())


def _ago(seconds: float) -> str:
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _state(host: InventoryHost, row: Host | None, as_of: float) -> HostState:
    """On the wall clock, where the fleet's own states are on the monotonic one."""
    if row is None:
        return HostState(host=host, since=as_of)
    reachable = row.state == "reachable"
    facts: HostFacts | None = None
    message = row.message
    if row.facts is not None:
        try:
            facts = HostFacts.from_dict(row.facts)
        except ProtocolError as error:
            message = f"its facts are of another version: {error}"
    known = row.state in Reason.__members__.values()
    return HostState(
        host=host,
        facts=facts,
        probed_at=row.probed_at,
        reachable=reachable and facts is not None,
        reason=None if reachable else Reason(row.state) if known else Reason.HOST_UNREACHABLE,
        message=message,
        since=as_of if row.probed_at is None else row.probed_at,
    )


def _silent(state: HostState, devices: Iterable[Gpu]) -> Iterator[SilentGpu]:
    """GPUs that the host had, and that did not answer when it was last probed."""
    if state.facts is None or not state.facts.gpu_error:
        return
    answered = {gpu.uuid for gpu in state.facts.gpus}
    for row in devices:
        if row.host == state.host.name and row.kind == "cuda" and row.uuid not in answered:
            facts = GpuFacts(
                uuid=row.uuid, name=row.name, kind=row.kind, total_mib=row.total_mib,
                free_mib=row.free_mib,
                processes=tuple(GpuProcess.from_dict(process) for process in row.processes),
            )  # fmt: skip
            yield SilentGpu(facts=facts, probed_at=row.updated_at)


async def _ended(
    store: Store, hosts: Iterable[Host]
) -> Mapping[str, Mapping[tuple[str, int], float]]:
    """By host: attempts that were seen to use memory there and have ended since, and when."""
    found: dict[str, dict[tuple[str, int], float]] = {}
    for row in hosts:
        for job, attempt in _seen(row):
            for one in await store.attempts(job):
                over = one.ended_at is not None and one.ended_at >= (row.probed_at or 0.0)
                if one.attempt == attempt and one.host == row.name and over:
                    found.setdefault(row.name, {})[job, attempt] = one.ended_at or 0.0
    return found


def _seen(row: Host) -> set[tuple[str, int]]:
    """(job, attempt) of those that had memory when the host was probed."""
    facts = row.facts or {}
    uses = [*facts.get("ram_own", ())]
    uses += [use for gpu in facts.get("gpus", ()) for use in gpu.get("processes", ())]
    return {
        (PurePosixPath(use["run_dir"]).name, use.get("attempt") or 0)
        for use in uses
        if use.get("run_dir")
    }


def _cached(jobs: Iterable[Job]) -> dict[str, dict[str, int]]:
    """Host -> job -> bytes of its inputs that lie there."""
    found: dict[str, dict[str, int]] = {}
    for job in jobs:
        if job.inputs_on_host and job.host is not None:
            found.setdefault(job.host, {})[job.id] = job.input_bytes
    return found


async def _survey(
    store: Store, jobs: Iterable[Job]
) -> tuple[Mapping[str, tuple[SegmentView, ...]], Mapping[str, tuple[StitchView, ...]]]:
    states = {job.id: job.state for job in jobs}
    segments: dict[str, list[SegmentView]] = {}
    for segment in await store.segments():
        if segment.job in states:  # else ingested while we read
            view = segment_view(segment, states[segment.job])
            segments.setdefault(segment.acquisition, []).append(view)
    stitches: dict[str, list[StitchView]] = {}
    decisions = decided(await store.requests(kinds=DECISIONS))
    for stitch in await store.stitches():
        stitches.setdefault(stitch.acquisition, []).append(stitch_view(stitch, decisions))
    return (
        {name: tuple(views) for name, views in segments.items()},
        {name: tuple(views) for name, views in stitches.items()},
    )


async def _sooner(
    store: Store, segments: Mapping[str, tuple[SegmentView, ...]]
) -> dict[str, Sooner]:
    """Of acquisitions with segments at work; by the config of the first segment, as a stitch."""
    found = {}
    for acquisition, views in segments.items():
        if any(view.state not in SETTLED for view in views):
            first = min(views, key=lambda view: view.created_at)
            if (sooner := sooner_of(await store.run(first.job))) is not None:
                found[acquisition] = sooner
    return found


async def _underway(store: Store, jobs: Iterable[Job], now: float) -> dict[str, Underway]:
    progress = await store.progress()
    found = {}
    for job in jobs:
        if job.step is Step.RUN:
            for attempt in await store.attempts(job.id):
                if attempt.attempt == job.attempt:
                    found[job.id] = _how_far(attempt, progress.get(job.id), now)
    return found


def _how_far(attempt: Attempt, progress: Progress | None, now: float) -> Underway:
    began = attempt.started_at or attempt.committed_at
    underway = Underway(elapsed_s=max(0.0, now - began))
    if progress is None or progress.updated_at < began:
        return underway
    return dataclasses.replace(underway, fraction=progress.fraction)
