"""Removes what is proven to be of no more use on a host: a job's inputs, and what it left there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dispatcher.clock import Clock
from dispatcher.core.events import InputsReclaimed, LeftoversReclaimed, ReclaimFailed
from dispatcher.core.model import Job, JobKind, JobState, Reason, Stage
from dispatcher.errors import AgentRefusal, HostError, TransportError
from dispatcher.executors.base import Executor
from dispatcher.executors.transfer import file_sha256
from dispatcher.fleet import Fleet
from dispatcher.jobspec import Input, JobSpecs
from worker_agent.protocol import ReclaimReport

log = logging.getLogger("cosma")

RETRY_FIRST_S = 0.5
RETRY_MOST_S = 20.0
TRIES = 10  # about two minutes; then again at the next start
FRAMES_PROOF = "frames/frames.json"
MADE = ("train", "sfm", "output", "frames")

Removing = Callable[[Job, Executor, str], Awaitable[ReclaimReport]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaimer:
    fleet: Fleet
    specs: JobSpecs
    clock: Clock
    epoch: int

    async def reclaim(
        self, job: Job, host: str, stimulus: str, *, tries: int = TRIES
    ) -> InputsReclaimed | ReclaimFailed:
        """Source videos go once every frame is verified on the host; a cancelled job's and a
        stitch's inputs are copies of what lies elsewhere. Raises TakenOver."""
        done = await self._repeat(self._inputs, job, host, tries)
        if isinstance(done, str):
            return ReclaimFailed(at=self.clock.now(), stimulus=stimulus, host=host, message=done)
        return InputsReclaimed(
            at=self.clock.now(),
            stimulus=stimulus,
            host=host,
            removed_bytes=done.removed_bytes,
            trimmed_bytes=done.trimmed_bytes,
            note=f"{done.trim_note}; {done.remaining_input_bytes} bytes of input left",
        )

    async def leftovers(
        self, job: Job, host: str, stimulus: str
    ) -> LeftoversReclaimed | ReclaimFailed:
        """What the job made on a host it has left, once it lies verified on another, or its
        results lie here; and source videos that are still there. The attempts' own records stay.
        Raises TakenOver."""
        done = await self._repeat(self._leftovers, job, host, TRIES)
        if isinstance(done, str):
            return ReclaimFailed(at=self.clock.now(), stimulus=stimulus, host=host, message=done)
        return LeftoversReclaimed(
            at=self.clock.now(),
            stimulus=stimulus,
            host=host,
            removed_bytes=done.removed_bytes,
            trimmed_bytes=done.trimmed_bytes,
            note=done.trim_note,
        )

    async def _repeat(
        self, removing: Removing, job: Job, host: str, tries: int
    ) -> ReclaimReport | str:
        """The report, or why nothing was removed."""
        delay = RETRY_FIRST_S
        why = ""
        for left in reversed(range(tries)):
            try:
                return await removing(job, self.fleet.executor(host), host)
            except HostError as error:
                why = error.line
                busy = isinstance(error, AgentRefusal) and error.refusal.error == "busy"
                if not (busy or isinstance(error, TransportError)) or not left:
                    break
                await asyncio.sleep(delay)
                delay = min(RETRY_MOST_S, delay * 2)
        return why

    async def _inputs(self, job: Job, executor: Executor, host: str) -> ReclaimReport:
        run_dir = await self.specs.run_dir(job, executor)
        inputs = await self.specs.inputs(job)
        proven = job.kind is JobKind.RECONSTRUCT and await self.specs.frames_done(job, host)
        return await executor.reclaim(
            run_dir,
            [item.path for item in inputs],
            epoch=self.epoch,
            verified_by=FRAMES_PROOF if proven else None,
            trim=await self._trim(job, host),
            expected_sha256={} if proven else await self._proofs(inputs),
        )

    async def _leftovers(self, job: Job, executor: Executor, host: str) -> ReclaimReport:
        now = await self.specs.store.job(job.id)
        if now is None or host in (now.host, now.origin):
            raise HostError(Reason.AGENT_FAILED, "the job has come back", where=host)
        state = self.fleet.state(host)
        if state is not None and state.facts is not None and not state.reachable:
            raise HostError(Reason.HOST_UNREACHABLE, state.message, where=host)
        videos = 0
        if now.state is JobState.DONE or await self.specs.frames_done(job, host):
            # Before the frames that prove them useless.
            videos = (await self._inputs(job, executor, host)).removed_bytes
        made = await executor.reclaim(
            await self.specs.run_dir(job, executor),
            MADE,
            epoch=self.epoch,
            trim=await self._trim(job, host),
            expected_sha256={} if now.state is JobState.DONE else await self._brought(job, host),
        )
        return replace(made, removed_bytes=made.removed_bytes + videos)

    async def _brought(self, job: Job, host: str) -> dict[str, str]:
        """What the new host verified when it got it from `host`: the same must lie there still."""
        for event in reversed(await self.specs.store.events(job=job.id, kind="handed_over")):
            if event.payload["source"] == host:
                then = replace(job, stage=Stage(event.payload["stage"]))
                return {
                    row.path: row.sha256
                    for rows in (await self.specs.made(then)).values()
                    for row in rows
                    if (row.attempt or 0) <= (event.attempt or 0)
                }
        return {}  # only a part had come there, from a host that still has all

    async def _trim(self, job: Job, host: str) -> str:
        """What the inventory says of the host's disk goes before what the job was given."""
        state = self.fleet.state(host)
        of_host = state.host.disk.fstrim if state else "auto"
        if of_host != "auto":
            return of_host
        return str((await self.specs.config(job))["reclaim"]["fstrim"])

    async def _proofs(self, inputs: list[Input]) -> dict[str, str]:
        """What shows that a copy lies here too: the hash of the original, read again now. An
        original that cannot be read proves nothing, and its copy on the host stays."""
        proofs = {}
        for item in inputs:
            if item.pull is None and not await asyncio.to_thread(Path(item.local).is_file):
                log.warning("%s is gone: its copy on the host is kept", item.local)
            elif item.sha256 is not None:
                proofs[item.path] = item.sha256
            elif item.pull is None:
                try:
                    proofs[item.path] = await asyncio.to_thread(file_sha256, Path(item.local))
                except OSError as error:
                    log.warning("%s: its copy on the host is kept: %s", item.local, error)
        return proofs
