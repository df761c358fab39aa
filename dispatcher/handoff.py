"""Brings what a job's finished stages made from the host it leaves to its new one, verified."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

from dispatcher.artifact_store import CHECKPOINT
from dispatcher.clock import Clock
from dispatcher.core.events import Event, HandedOver, HandoffAbandoned, TransferFailed
from dispatcher.core.handoff import Cost, cost, resume_stage
from dispatcher.core.model import Job, Stage
from dispatcher.core.need import Needs
from dispatcher.errors import AgentRefusal, HostError, TransportError
from dispatcher.executors.base import Executor
from dispatcher.executors.relay import SourceLost
from dispatcher.fleet import Fleet
from dispatcher.input_progress import Arriving
from dispatcher.jobspec import JobSpecs
from dispatcher.store.rows import ArtifactRow
from dispatcher.telling import telling
from worker_agent.protocol import Artifact, PackItem, UnpackReport, UnpackRequest

log = logging.getLogger("cosma")

RETRY_FIRST_S = 0.5
RETRY_MOST_S = 10.0
BUSY_PATIENCE_S = 300.0  # a killed dispatcher's transfer may still be at work there
RELAY_S = 3600.0  # how long a host that could not reach another is not asked to again
TRAINING_STATE = "train/checkpoint.pt"
Made = dict[Stage, list[ArtifactRow]]


@dataclass(frozen=True, slots=True)
class _Brought:
    report: UnpackReport
    route: str  # as in HandedOver
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handoff:
    fleet: Fleet
    specs: JobSpecs
    clock: Clock
    epoch: int
    needs: Callable[[], Needs]
    # (old host, new host) -> why by way of here, until when (monotonic)
    _relayed: dict[tuple[str, str], tuple[str, float]] = field(default_factory=dict)

    async def hand_over(self, job: Job, host: str, source: str, stimulus: str) -> Event:
        """Can be repeated: what lies on `host` and verifies is not brought again."""
        made = await self.specs.made(job)
        price = await self._cost(job, host, source, made)
        if source != host and not price.worth:
            why = (
                f"bringing {price.bytes >> 20} MiB at {price.link_bytes_s / 1e6:.1f} MB/s would "
                f"take longer than the {price.redo_s:.0f} s of doing it again"
            )
            return self._abandoned(source, why, stimulus)
        began = self.clock.monotonic()
        try:
            target = self.fleet.executor(host)
            arriving = Arriving(price.bytes, what=f"from {source}")
            async with telling(self.specs.store, self.clock, job.id, arriving):
                brought = await self._bring(job, target, host, source, made, price, arriving)
            stage = resume_stage(
                job,
                {at: [row.path for row in rows] for at, rows in made.items()},
                brought.report.missing,
            )
            note = "; ".join(part for part in (_lost(brought.report), brought.note) if part)
            if stage is None:
                return self._abandoned(source, note, stimulus)
            here = [
                replace(row, host=host)
                for rows in made.values()
                for row in rows
                if row.path not in brought.report.missing
            ]
            await self.specs.store.add_artifacts(job.id, here, durable=False)
        except HostError as error:
            return TransferFailed(
                at=self.clock.now(), stimulus=stimulus, reason=error.reason,
                message=error.message, advice=error.fix,
            )  # fmt: skip
        return HandedOver(
            at=self.clock.now(),
            stimulus=stimulus,
            stage=stage,
            source=source,
            route=brought.route,
            files=brought.report.files,
            bytes=brought.report.bytes,
            seconds=round(self.clock.monotonic() - began, 3),
            note=note,
        )

    def _abandoned(self, source: str, why: str, stimulus: str) -> HandoffAbandoned:
        return HandoffAbandoned(at=self.clock.now(), stimulus=stimulus, source=source, message=why)

    async def _cost(self, job: Job, host: str, source: str, made: Made) -> Cost:
        views = {view.name: view for view in self.fleet.host_views()}
        links = [views[name].link_bytes_s for name in (host, source) if name in views]
        gpus = views[host].gpus if host in views else ()
        amount = sum(row.bytes for rows in made.values() for row in rows)
        amount += await self._frame_bytes(job)
        return cost(job, amount, links, self.needs(), gpus[0] if gpus else None)

    async def _frame_bytes(self, job: Job) -> int:
        """Of all frames, as their stage counted them; where it did not, as many as the video's."""
        counts = [
            run.metrics.get("frame_bytes")
            for run in await self.specs.store.stage_metrics(job.id)
            if run.stage is Stage.FRAME_EXTRACTION
        ]
        known = [count for count in counts if isinstance(count, int)]
        return known[-1] if known else job.input_bytes

    async def _bring(
        self,
        job: Job,
        target: Executor,
        host: str,
        source: str,
        made: Made,
        price: Cost,
        arriving: Arriving,
    ) -> _Brought:
        """Until the files are there or the old host has been waited for long enough; then what
        is there must do. Raises HostError of the new host."""
        began, delay = self.clock.monotonic(), RETRY_FIRST_S
        request = UnpackRequest(
            epoch=self.epoch,
            job=job.id,
            run_dir=await self.specs.run_dir(job, target),
            files=tuple(_artifact(row) for rows in made.values() for row in rows),
            extras=_extras(job),
            source_run_dir="",
        )
        came = functools.partial(arriving.there.__setitem__, source)
        if source == host:
            return _Brought(await target.unpack(replace(request, extras=()), None, came), "there")
        while True:
            now = self.clock.monotonic()
            try:
                return await self._once(job, target, host, source, request, came)
            except SourceLost as lost:
                if now - min(began, self._silent_since(source)) >= price.patience_s:
                    log.warning("%s: %s keeps what was made there: %s", job.id, source, lost)
                    report = await target.unpack(request, None, came)
                    return _Brought(report, "there", lost.error.message)
            except AgentRefusal as refusal:
                if refusal.refusal.error != "busy" or now - began >= BUSY_PATIENCE_S:
                    raise
            await asyncio.sleep(delay * random.uniform(0.75, 1.25))
            delay = min(RETRY_MOST_S, delay * 2)

    def _silent_since(self, host: str) -> float:
        """A host that left the inventory has been silent for ever."""
        state = self.fleet.state(host)
        if state is None:
            return float("-inf")
        return float("inf") if state.reachable else state.since

    async def _once(
        self,
        job: Job,
        target: Executor,
        host: str,
        source: str,
        request: UnpackRequest,
        came: Callable[[int], None],
    ) -> _Brought:
        """From host to host with a key made for it, where the new one reaches the old one; else
        through here."""
        try:
            giver = self.fleet.executor(source)
            run_dir = await self.specs.run_dir(job, giver)
        except HostError as error:
            raise SourceLost(error) from None
        request = replace(request, source_run_dir=run_dir)
        why, until = self._relayed.get((source, host), ("", 0.0))
        if self.clock.monotonic() >= until:
            direct = await self._direct(giver, target, request, came)
            if isinstance(direct, UnpackReport):
                return _Brought(direct, "direct")
            why = direct
            self._relayed[source, host] = (why, self.clock.monotonic() + RELAY_S)
        return _Brought(await target.unpack(request, giver.pack, came), "relayed", why)

    async def _direct(
        self,
        giver: Executor,
        target: Executor,
        request: UnpackRequest,
        came: Callable[[int], None],
    ) -> UnpackReport | str:
        """Or why not. Raises SourceLost, HostError of the new host."""
        async with AsyncExitStack() as key:
            try:
                granted = giver.granted(request.source_run_dir, self.epoch, "pack")
                peer = await key.enter_async_context(granted)
            except TransportError as error:
                raise SourceLost(error) from None
            except HostError as error:
                return error.line
            try:
                return await target.unpack(replace(request, source=peer), None, came)
            except AgentRefusal as refusal:
                if refusal.refusal.error not in ("transfer_failed", "tool_missing"):
                    raise
                return refusal.message


def _lost(report: UnpackReport) -> str:
    first = ", ".join(report.missing[:3])
    more = f" and {len(report.missing) - 3} more" if len(report.missing) > 3 else ""
    return f"{first}{more} could not be had" if first else ""


def _artifact(row: ArtifactRow) -> Artifact:
    return Artifact(kind=row.kind, path=row.path, bytes=row.bytes, sha256=row.sha256)


def _extras(job: Job) -> tuple[PackItem, ...]:
    """What has no hash in the database: the checkpoint, and a training that was cut off."""
    checkpoint = PackItem(path=CHECKPOINT, kind="checkpoint")
    if job.stage is not Stage.TRAINING:
        return (checkpoint,)
    return (checkpoint, PackItem(path=TRAINING_STATE, kind="training_state"))
