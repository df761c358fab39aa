"""SHA-256 of what a host pulled by itself, for the record of what a job was made of.

Every block of it was verified when it came, and nothing that the job does waits for this: the host
takes the hash beside the job's first stages, unhurried. What a dispatcher that ended left open is
taken before the file is removed, so that none goes without.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from dataclasses import dataclass, field

from dispatcher.core.model import Job
from dispatcher.errors import AgentRefusal, HostError
from dispatcher.fleet import Fleet
from dispatcher.jobspec import JobSpecs

log = logging.getLogger("cosma")

DELIVERED = "input_delivered"
HASHED = "input_hashed"


@dataclass(frozen=True, slots=True)
class Provenance:
    fleet: Fleet
    specs: JobSpecs
    _beside: dict[str, asyncio.Task[None]] = field(default_factory=dict, init=False)  # by job
    # One at a time on a host: it reads what a stage may want to read.
    _turns: defaultdict[str, asyncio.Lock] = field(
        default_factory=lambda: defaultdict(asyncio.Lock), init=False
    )

    def begin(self, job: Job, host: str) -> None:
        """Beside all else."""
        if job.id not in self._beside:
            task = self._beside[job.id] = asyncio.create_task(self._try(job, host))
            task.add_done_callback(lambda _: self._beside.pop(job.id, None))

    async def _try(self, job: Job, host: str) -> None:
        try:
            await self._settle(job, host)
        except HostError as error:
            log.info("%s: SHA-256 of what was pulled is taken later: %s", job.id, error.line)

    async def settle(self, job: Job, host: str) -> None:
        """Until the hash of all that lies on `host` is recorded. Raises HostError."""
        if (beside := self._beside.get(job.id)) is not None:
            await asyncio.wait({beside})
        await self._settle(job, host)

    async def _settle(self, job: Job, host: str) -> None:
        for path in await self._owed(job, host):
            executor = self.fleet.executor(host)
            async with self._turns[host]:
                try:
                    found = await executor.digest(await self.specs.run_dir(job, executor), path)
                except AgentRefusal as refusal:
                    # Somebody removed it, or the disk cannot read it: that must not keep it there.
                    log.warning("%s: %s goes without a SHA-256: %s", job.id, path, refusal.line)
                    continue
            payload = {"path": path, "bytes": found.bytes, "sha256": found.sha256}
            await self.specs.store.record_event(HASHED, job=job.id, host=host, payload=payload)

    async def _owed(self, job: Job, host: str) -> list[str]:
        """Paths that came to `host` without a hash, and have none since."""
        owed: dict[str, int] = {}  # path -> id of the event
        for event in await self.specs.store.events(job=job.id, kind=DELIVERED):
            if event.host == host and event.payload["sha256"] is None:
                owed[event.payload["path"]] = event.id
        if owed:
            for event in await self.specs.store.events(job=job.id, kind=HASHED):
                if event.host == host and event.id > owed.get(event.payload["path"], event.id):
                    del owed[event.payload["path"]]
        return list(owed)
