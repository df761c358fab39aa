"""Removes what is proven to be of no more use on a host: a job's inputs, and what it left there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from dispatcher.artifact_store import COLLECTED_KINDS
from dispatcher.clock import Clock
from dispatcher.core.events import (
    InputsKept,
    InputsReclaimed,
    LeftoversReclaimed,
    MadeReclaimed,
    ReclaimFailed,
)
from dispatcher.core.model import Job, JobKind, JobState, Reason, Stage
from dispatcher.core.reclaiming import MADE, Kind, Until
from dispatcher.errors import AgentRefusal, HostError, TransportError
from dispatcher.executors.base import Executor
from dispatcher.executors.transfer import file_sha256
from dispatcher.file_expiry import GivingBack
from dispatcher.fleet import Fleet
from dispatcher.jobspec import Input, JobSpecs
from dispatcher.provenance import Provenance
from dispatcher.store.rows import ArtifactRow, Removal
from dispatcher.trims import Trims
from worker_agent.protocol import ReclaimReport, RemovedPath

log = logging.getLogger("cosma")

RETRY_FIRST_S = 0.5
RETRY_MOST_S = 20.0
TRIES = 10  # about two minutes; then again at the next start
FRAMES_PROOF = "frames/frames.json"
COPY = "copy"
NEEDS_PROOF = "bad_request"  # the agent's word for an input without one

E = TypeVar("E")
Removing = Callable[[Job, Executor, str], Awaitable[tuple[int, int]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaimer:
    """Sizes are (length of the files, blocks that they took), in bytes."""

    fleet: Fleet
    specs: JobSpecs
    giving_back: GivingBack
    trims: Trims
    provenance: Provenance
    clock: Clock
    epoch: int

    async def reclaim(
        self, job: Job, host: str, stimulus: str, *, tries: int = TRIES
    ) -> InputsReclaimed | InputsKept | ReclaimFailed:
        """Source videos go once every frame is verified on the host, and the policy for them lets
        them; a cancelled job's and a stitch's inputs are copies of what lies elsewhere. Raises
        TakenOver."""
        rule = await self._kept_by(job, host)
        if rule:
            self.provenance.begin(job, host)
            return InputsKept(at=self.clock.now(), stimulus=stimulus, host=host, rule=rule)
        return await self._repeat(InputsReclaimed, self._inputs, job, host, stimulus, tries)

    async def made(
        self, job: Job, host: str, kinds: Sequence[Kind], stimulus: str
    ) -> MadeReclaimed | ReclaimFailed:
        """What a job that is done made, once its results lie verified in the artifact store. Raises
        TakenOver."""
        told = partial(MadeReclaimed, kinds=tuple(map(str, kinds)))
        remove = partial(self._made, kinds=kinds)
        return await self._repeat(told, remove, job, host, stimulus, TRIES)

    async def leftovers(
        self, job: Job, host: str, stimulus: str, *, tries: int = TRIES
    ) -> LeftoversReclaimed | ReclaimFailed:
        """What the job made on a host it has left, once it lies verified on another, or its
        results lie here; and source videos that are still there. The attempts' own records stay.
        Raises TakenOver."""
        return await self._repeat(LeftoversReclaimed, self._leftovers, job, host, stimulus, tries)

    async def _repeat(
        self,
        told: Callable[..., E],
        removing: Removing,
        job: Job,
        host: str,
        stimulus: str,
        tries: int,
    ) -> E | ReclaimFailed:
        """What was removed, or why nothing was."""
        delay = RETRY_FIRST_S
        why = ""
        for left in reversed(range(tries)):
            try:
                done = await removing(job, self.fleet.executor(host), host)
            except HostError as error:
                why = error.line
                busy = isinstance(error, AgentRefusal) and error.refusal.error == "busy"
                if not (busy or isinstance(error, TransportError)) or not left:
                    break
                await asyncio.sleep(delay)
                delay = min(RETRY_MOST_S, delay * 2)
            else:
                mode = await self.giving_back.trim_mode(job, host)
                if done[1] and mode != "off":
                    self.trims.want(host, mode)
                return told(
                    at=self.clock.now(),
                    stimulus=stimulus,
                    host=host,
                    removed_bytes=done[0],
                    freed_bytes=done[1],
                )
        return ReclaimFailed(at=self.clock.now(), stimulus=stimulus, host=host, message=why)

    async def _remove(
        self,
        job: Job,
        executor: Executor,
        host: str,
        what: str,
        paths: Sequence[str],
        *,
        verified_by: str | None = None,
        expected_sha256: dict[str, str] | None = None,
    ) -> tuple[int, int]:
        """And write it down. Raises HostError."""
        report = await self._ask(
            job, executor, paths, verified_by=verified_by, expected_sha256=expected_sha256
        )
        if report.removed:
            await self._book(job, host, {what: report})
        return report.removed_bytes, report.freed_bytes

    async def _ask(
        self,
        job: Job,
        executor: Executor,
        paths: Sequence[str],
        *,
        verified_by: str | None = None,
        expected_sha256: dict[str, str] | None = None,
    ) -> ReclaimReport:
        return await executor.reclaim(
            await self.specs.run_dir(job, executor),
            paths,
            epoch=self.epoch,
            verified_by=verified_by,
            expected_sha256=expected_sha256,
        )

    async def _book(
        self, job: Job, host: str, took: Mapping[str, ReclaimReport | RemovedPath]
    ) -> None:
        """`took`: by what was removed."""
        await self.specs.store.add_removals(
            [
                Removal(
                    at=self.clock.now(),
                    host=host,
                    job=job.id,
                    what=what,
                    removed_bytes=one.removed_bytes,
                    freed_bytes=one.freed_bytes,
                    free_before=one.free_before,
                    free_after=one.free_after,
                )
                for what, one in took.items()
            ]
        )

    # --- inputs ---

    async def _kept_by(self, job: Job, host: str) -> str:
        """The rule by which its source videos stay on its host for now; "": they go."""
        if job.kind is not JobKind.RECONSTRUCT or host != job.host:
            return ""
        if job.state is JobState.CANCELLED:
            return ""
        rule = (await self.giving_back.policy(job, host))[Kind.SOURCE_VIDEOS]
        if rule is Until.VERIFIED or Kind.SOURCE_VIDEOS in await self.giving_back.due(job):
            return ""
        return rule if isinstance(rule, str) else f"days: {rule:g}"

    async def _inputs(self, job: Job, executor: Executor, host: str) -> tuple[int, int]:
        inputs = await self.specs.inputs(job)
        if any(item.pull is not None for item in inputs):
            await self.provenance.settle(job, host)
        proven = job.kind is JobKind.RECONSTRUCT and await self.specs.frames_done(job, host)
        remove = partial(
            self._remove, job, executor, host, Kind.SOURCE_VIDEOS, [item.path for item in inputs]
        )
        if proven:
            return await remove(verified_by=FRAMES_PROOF)
        try:
            return await remove()  # where no file is whole, nothing has to be proven
        except AgentRefusal as refusal:
            if refusal.refusal.error != NEEDS_PROOF:
                raise
        return await remove(expected_sha256=await self._proofs(inputs))

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

    # --- what jobs make ---

    async def _made(
        self, job: Job, executor: Executor, host: str, kinds: Sequence[Kind]
    ) -> tuple[int, int]:
        now, rows = await self.specs.store.results(job.id)
        if now is None or now.state is not JobState.DONE or now.host != host:
            raise HostError(Reason.AGENT_FAILED, "the job has been taken up again", where=host)
        await asyncio.to_thread(_require_copies, [r for r in rows if r.kind in COLLECTED_KINDS])
        report = await self._ask(job, executor, [MADE[kind] for kind in kinds])
        kind_of = {MADE[kind]: kind for kind in kinds}
        # The books tell what each kind took.
        await self._book(job, host, {kind_of[one.path]: one for one in report.each})
        return report.removed_bytes, report.freed_bytes

    async def _leftovers(self, job: Job, executor: Executor, host: str) -> tuple[int, int]:
        now = await self.specs.store.job(job.id)
        if now is None or host in (now.host, now.origin):
            raise HostError(Reason.AGENT_FAILED, "the job has come back", where=host)
        state = self.fleet.state(host)
        if state is not None and state.facts is not None and not state.reachable:
            raise HostError(Reason.HOST_UNREACHABLE, state.message, where=host)
        # Before the frames that prove them useless.
        inputs = await self._inputs(job, executor, host)
        proofs: Mapping[str, str] = {}
        if now.state is not JobState.DONE:
            proofs = await self._brought(job, host)
        made = await self._remove(
            job, executor, host, COPY, list(MADE.values()), expected_sha256=dict(proofs)
        )
        return inputs[0] + made[0], inputs[1] + made[1]

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


def _require_copies(rows: Iterable[ArtifactRow]) -> None:
    for row in rows:
        _require_copy(row)


def _require_copy(row: ArtifactRow) -> None:
    """Raises HostError unless the artifact store has the very file."""
    if row.local_path is None:
        if row.remote_url is not None:
            return
        found = "is not there"
    else:
        try:
            if file_sha256(Path(row.local_path)) == row.sha256:
                return
            found = "is not what was collected"
        except OSError as error:
            found = f"cannot be read ({error.strerror})"
    raise HostError(
        Reason.TRANSFER_CORRUPT,
        f"the collected {row.kind} {found}: what the host has stays there",
        where=row.local_path or row.path,
        fix="cosma fsck --fix",
    )
