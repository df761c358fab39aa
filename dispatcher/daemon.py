"""Puts a dispatcher together: lock, store, hosts, loop, signals; and takes it apart again."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dispatcher.agent_bundle import build
from dispatcher.artifact_store import ArtifactStore
from dispatcher.attempt_retention import AttemptRetention
from dispatcher.clock import Clock, SystemClock
from dispatcher.collecting import Collecting
from dispatcher.core.model import Job, Reason
from dispatcher.core.place import Policy
from dispatcher.effects import Effects
from dispatcher.executors.base import Executor
from dispatcher.executors.ssh import SshExecutor
from dispatcher.file_expiry import GivingBack
from dispatcher.fleet import Fleet
from dispatcher.garbage import searched_once
from dispatcher.handoff import Handoff
from dispatcher.heartbeat import heartbeat_path
from dispatcher.input_delivery import Bringing
from dispatcher.intervals import Intervals
from dispatcher.inventory import find_inventory
from dispatcher.inventory_model import Inventory, InventoryHost
from dispatcher.inventory_watch import InventoryWatch
from dispatcher.jobspec import JobSpecs
from dispatcher.learning import Learning
from dispatcher.loop import Dispatcher, Service
from dispatcher.object_store import ObjectStore
from dispatcher.provenance import Provenance
from dispatcher.quarantine import Quarantines
from dispatcher.reclaim import Reclaimer
from dispatcher.retention import DAY_S, HOUR_S, Retention
from dispatcher.settings import DispatcherSettings
from dispatcher.stitching import Stitching
from dispatcher.store.lock import DispatcherLock
from dispatcher.store.sqlite import SqliteStore
from dispatcher.thin_pool import PoolWatch
from dispatcher.trims import Trims

log = logging.getLogger("cosma")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a run ended: all jobs it knew, and which hosts were asked and did not answer."""

    jobs: dict[str, Job]
    unreachable: dict[str, str]
    hosts: int
    interrupted: bool


async def run_dispatcher(
    settings: DispatcherSettings, inventory_file: Path | None, *, once: bool
) -> Ended:
    """Raises DispatcherLocked while another one works on the database; InventoryError."""
    inventory = find_inventory(inventory_file)
    settings.database.parent.mkdir(parents=True, exist_ok=True)
    with DispatcherLock(settings.database):
        store = await SqliteStore.open(settings.database)
        try:
            return await _run(settings, inventory, inventory_file, store, once=once)
        finally:
            await store.close()


async def _run(
    settings: DispatcherSettings,
    inventory: Inventory,
    inventory_file: Path | None,
    store: SqliteStore,
    *,
    once: bool,
) -> Ended:
    clock = SystemClock()
    bundle = build()

    def connect(host: InventoryHost) -> Executor:
        return SshExecutor.connect_to(host, bundle)

    fleet = Fleet.of(inventory, connect, clock=clock)
    epoch = await store.new_epoch(host=socket.gethostname(), pid=os.getpid(), at=time.time())
    specs = JobSpecs(store, lambda host: _stage_python(fleet, host))
    learning = await Learning.from_store(store)
    stitching = Stitching(store, clock)
    trims = Trims(fleet, store, clock, settings.trim_window_s)
    await trims.take_up()
    collecting = Collecting(
        store=store,
        artifacts=ArtifactStore(settings.artifacts),
        remote=ObjectStore(settings.artifacts_url) if settings.artifacts_url else None,
    )
    pools = PoolWatch(
        store,
        fleet,
        clock,
        want_trim=lambda host, mode: trims.want(host, mode, now=True),
        every_s=settings.probe_s,
    )
    dispatcher = Dispatcher(
        store=store,
        fleet=fleet,
        effects=Effects(
            fleet=fleet,
            session=lambda host: dispatcher.session(host),
            store=store,
            bringing=Bringing(
                fleet=fleet,
                store=store,
                collecting=collecting,
                specs=specs,
                clock=clock,
                epoch=epoch,
            ),
            collecting=collecting,
            specs=specs,
            handoff=Handoff(
                fleet=fleet,
                specs=specs,
                clock=clock,
                epoch=epoch,
                needs=lambda: learning.needs,
            ),
            reclaimer=Reclaimer(
                fleet=fleet,
                specs=specs,
                giving_back=GivingBack(fleet, specs, clock),
                trims=trims,
                provenance=Provenance(fleet, specs),
                clock=clock,
                epoch=epoch,
            ),
            clock=clock,
            epoch=epoch,
            lease_scale=settings.lease_scale,
        ),
        stitching=stitching,
        clock=clock,
        policy=Policy(),
        learning=learning,
        heartbeat=heartbeat_path(settings.database),
        once=once,
        intervals=Intervals(
            poll_s=settings.poll_s,
            probe_s=settings.probe_s,
            probe_timeout_s=settings.probe_timeout_s,
        ),
        inventory_watch=InventoryWatch(inventory_file),
        connect=connect,
        quarantines=Quarantines(store, fleet, clock),
        services=(
            pools.run,
            stitching.keep_deadlines,
            partial(
                AttemptRetention(
                    fleet=fleet, store=store, epoch=epoch, keep_s=settings.retention_days * DAY_S
                ).run,
                6 * HOUR_S,
            ),
            *_schedule(settings, collecting, clock),
        ),
    )
    interrupted = False

    def end(number: signal.Signals) -> None:
        nonlocal interrupted
        interrupted = number is signal.SIGINT
        log.info("stopping; what runs on the hosts goes on and is taken up again at the next start")
        dispatcher.stop()

    running = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(number, end, number)
    try:
        with searched_once():
            jobs = await dispatcher.run()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            running.remove_signal_handler(number)
        await fleet.close()
    return Ended(
        jobs=jobs,
        unreachable={
            state.host.name: state.message
            for state in fleet.states
            if not state.reachable and state.reason is not Reason.PROBE_STALE
        },
        hosts=len(fleet.states),
        interrupted=interrupted,
    )


def _schedule(
    settings: DispatcherSettings, collecting: Collecting, clock: Clock
) -> Iterator[Service]:
    """What the dispatcher does now and then, where it is asked to."""
    if settings.gc_hours:
        retention = Retention(
            store=collecting.store,
            artifacts=collecting.artifacts,
            remote=collecting.remote,
            clock=clock,
            keep_s=settings.retention_days * DAY_S,
        )
        yield partial(retention.run, settings.gc_hours * HOUR_S)


def _stage_python(fleet: Fleet, host: str) -> str | None:
    state = fleet.state(host)
    return state.host.stage_python if state else None
