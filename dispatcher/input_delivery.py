"""Brings what a job's first stage reads to its host, by the shortest way that there is.

A file of another host of the farm goes straight from there, with a key made for that transfer; from
a store that the farm does not know, the host pulls it by its own ssh. What lies here is pushed, and
what only this machine reaches goes through here. The way of each file, and why it was not the
shorter one, is in its event.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dispatcher.clock import Clock
from dispatcher.collecting import Collecting
from dispatcher.concurrent_copies import at_once
from dispatcher.core.model import Job, Reason
from dispatcher.errors import AgentRefusal, HostError, TransferError
from dispatcher.executors.base import Executor
from dispatcher.executors.transfer import SMALL
from dispatcher.fleet import Fleet
from dispatcher.input_progress import Arriving
from dispatcher.jobspec import Input, JobSpecs
from dispatcher.provenance import DELIVERED
from dispatcher.reading import read_remote
from dispatcher.sources import split_remote
from dispatcher.store.base import Store
from dispatcher.telling import telling
from worker_agent.protocol import FetchRequest, Peer, TransferReport

log = logging.getLogger("cosma")

# Not the other host's fault, nor the link's: nothing would be different by another way.
_NOT_REACHED = frozenset({"transfer_failed", "tool_missing"})
_NO_OTHER_WAY = frozenset({"disk_full", "transfer_corrupt", "stale_epoch", "busy"})


@dataclass(frozen=True, slots=True)
class _Brought:
    route: str  # direct | local | pulled | pushed | relayed
    sha256: str | None  # of what arrived; None: its host takes it when it is there
    note: str = ""  # why by no shorter one


@dataclass(frozen=True, slots=True, kw_only=True)
class Bringing:
    fleet: Fleet
    store: Store
    collecting: Collecting
    specs: JobSpecs
    clock: Clock
    epoch: int

    async def inputs(self, job: Job, host: str, *, first: bool) -> bool:
        """All that is not there yet; of a `first` try, that is all. True where the host is to say
        the hash of what came (see dispatcher.provenance). Raises HostError."""
        executor = self.fleet.executor(host)
        run_dir = await self.specs.run_dir(job, executor)
        there = set() if first else await self._delivered(job, host)
        items = [item for item in await self.specs.inputs(job) if item.path not in there]
        arriving = Arriving(sum(item.bytes for item in items))
        look = self._looking(executor, run_dir, arriving, items)
        began = self.clock.monotonic()
        async with telling(self.store, self.clock, job.id, arriving, look):
            brought = await at_once(
                self._deliver(executor, run_dir, item, job, host, arriving) for item in items
            )
        if first:  # of a later one a part may have been there
            ways = zip(items, brought, strict=True)
            came = sum(item.bytes for item, one in ways if one.route != "local")
            self.fleet.brought(host, came, self.clock.monotonic() - began)
        return any(one.sha256 is None for one in brought)

    async def _deliver(
        self, executor: Executor, run_dir: str, item: Input, job: Job, host: str, to: Arriving
    ) -> _Brought:
        brought = await self._bring(executor, run_dir, item, host, to)
        to.there[item.path] = item.bytes
        # The hash tells what a job was made of; of a stitch, that is kept as long as the stitch.
        payload = {"path": item.path, "bytes": item.bytes, "sha256": brought.sha256}
        payload |= {"route": brought.route, "note": brought.note}
        await self.store.record_event(DELIVERED, job=job.id, host=host, payload=payload)
        return brought

    async def _delivered(self, job: Job, host: str) -> set[str]:
        """What a transfer that was cut short has brought already. Asking the host instead costs a
        process there for each file, so that short-lived dispatchers would never get further."""
        if not await self.store.events(job=job.id, kind=DELIVERED, limit=1):
            return set()
        since = 0
        for kind in ("host_assigned", "inputs_reclaimed", "release_requested"):
            since = max([since, *(e.id for e in await self.store.events(job=job.id, kind=kind))])
        known = await self.store.events(job=job.id, kind=DELIVERED, after=since)
        return {event.payload["path"] for event in known if event.host == host}

    async def _bring(
        self, executor: Executor, run_dir: str, item: Input, host: str, to: Arriving
    ) -> _Brought:
        note = ""
        at = self._on_a_host(item)
        # A key of its own is dearer than a small file that lies here, too.
        if at is not None and (item.pull is not None or item.bytes > SMALL or at[0] == host):
            try:
                return await self._from_host(executor, run_dir, item, host, *at)
            except HostError as error:
                if isinstance(error, AgentRefusal) and error.refusal.error in _NO_OTHER_WAY:
                    raise
                note = f"not straight from {at[0]}: {error.line}"
                log.warning("%s: %s", item.path, note)
        if item.pull is None:
            report = await self._push(executor, run_dir, item, to)
            return _Brought("pushed", report.sha256, note)
        try:
            report = await executor.fetch(_request(item, run_dir, item.pull))
            return _Brought("pulled", report.sha256, note)
        except AgentRefusal as refusal:
            if refusal.refusal.error not in _NOT_REACHED:
                raise
            said = f"not pulled by {host}: {refusal.message}"
            note = f"{note}; {said}" if note else said
        log.warning("%s: through here: %s", item.path, note)
        report = await self._pass(executor, run_dir, item, to, note)
        return _Brought("relayed", report.sha256, note)

    def _on_a_host(self, item: Input) -> tuple[str, str] | None:
        """(host of the farm, absolute path on it) of a file that lies on one."""
        name, path = split_remote(item.pull) or (None, "") if item.pull else (item.made_on, "")
        if name is None or self.fleet.state(name) is None:
            return None
        return name, path

    async def _from_host(
        self, executor: Executor, run_dir: str, item: Input, host: str, source: str, path: str
    ) -> _Brought:
        giver = self.fleet.executor(source)
        path = path or f"{await giver.work_dir()}/{item.made_at}"
        request = _request(item, run_dir, path)
        if source == host:
            return _Brought("local", (await executor.fetch(request)).sha256)
        async with giver.granted(path, self.epoch, "give") as peer:
            report = await executor.fetch(_request(item, run_dir, path, peer))
        return _Brought("direct", report.sha256)

    async def _push(
        self, executor: Executor, run_dir: str, item: Input, to: Arriving
    ) -> TransferReport:
        local = Path(item.local)
        push = partial(
            executor.push_file, local, run_dir, item.path, sha256=item.sha256,
            progress=to.of(item.path),
        )  # fmt: skip
        try:
            return await push()
        except TransferError as error:
            if error.reason is not Reason.INPUT_MISSING:
                raise
        if not await self.collecting.bring_back(local):
            raise TransferError(
                Reason.INPUT_MISSING,
                "the source file is not there any more",
                where=item.local,
                fix="put it back where it was ingested",
            )
        return await push()

    async def _pass(
        self, executor: Executor, run_dir: str, item: Input, to: Arriving, note: str
    ) -> TransferReport:
        def read() -> AsyncGenerator[bytes, None]:
            at = self._on_a_host(item)
            if at is not None:
                return self.fleet.executor(at[0]).read_file(at[1], item.bytes)
            return read_remote(*(split_remote(item.pull or "") or ("", "")))

        try:
            return await executor.pass_file(
                read, item.bytes, run_dir, item.path, sha256=item.sha256, progress=to.of(item.path)
            )
        except TransferError as error:
            raise TransferError(
                error.reason, error.what, where=error.where, why=f"{error.why}; {note}",
                fix=error.fix,
            ) from None  # fmt: skip

    def _looking(
        self, executor: Executor, run_dir: str, arriving: Arriving, items: list[Input]
    ) -> Callable[[], Awaitable[None]]:
        """Nobody tells how much has come of what a host pulls by itself."""
        pulled = [item for item in items if item.pull is not None or item.made_on is not None]

        async def look() -> None:
            for item in pulled:
                if arriving.there.get(item.path) != item.bytes:
                    with contextlib.suppress(HostError):
                        arriving.there[item.path] = await executor.arrived(run_dir, item.path)

        return look


def _request(item: Input, run_dir: str, source: str, peer: Peer | None = None) -> FetchRequest:
    return FetchRequest(
        source=source, run_dir=run_dir, path=item.path, bytes=item.bytes, sha256=item.sha256,
        peer=peer,
    )  # fmt: skip
