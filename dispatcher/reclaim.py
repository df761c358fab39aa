"""Removes a job's inputs from a host, where they are proven to be of no more use."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from dispatcher.clock import Clock
from dispatcher.core.model import InputsReclaimed, Job, JobKind, ReclaimFailed
from dispatcher.errors import HostError, TransportError
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
        delay = RETRY_FIRST_S
        why = ""
        for left in reversed(range(tries)):
            try:
                report = await self._reclaim(job, self.fleet.executor(host), host)
            except HostError as error:
                why = error.line
                if not isinstance(error, TransportError) or not left:
                    break
                await asyncio.sleep(delay)
                delay = min(RETRY_MOST_S, delay * 2)
            else:
                return InputsReclaimed(
                    at=self.clock.now(),
                    stimulus=stimulus,
                    host=host,
                    removed_bytes=report.removed_bytes,
                    trimmed_bytes=report.trimmed_bytes,
                    note=f"{report.trim_note}; {report.remaining_input_bytes} bytes of input left",
                )
        return ReclaimFailed(at=self.clock.now(), stimulus=stimulus, host=host, message=why)

    async def _reclaim(self, job: Job, executor: Executor, host: str) -> ReclaimReport:
        run_dir = await self.specs.run_dir(job, executor)
        inputs = await self.specs.inputs(job)
        proven = job.kind is JobKind.RECONSTRUCT and await self.specs.frames_done(job, host)
        return await executor.reclaim(
            run_dir,
            [item.path for item in inputs],
            epoch=self.epoch,
            verified_by=FRAMES_PROOF if proven else None,
            trim=self._trim(host, (await self.specs.config(job))["reclaim"]["fstrim"]),
            expected_sha256={} if proven else await self._proofs(inputs),
        )

    def _trim(self, host: str, wanted: str) -> str:
        """What the inventory says of the host's disk goes before what the job was given."""
        state = self.fleet.state(host)
        of_host = state.host.disk.fstrim if state else "auto"
        return wanted if of_host == "auto" else of_host

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
