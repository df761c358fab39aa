"""Compares one host with the database, and acts on what is proven by it.

Harvesting and adopting need no act: whatever is live is watched by its host's session, which is
told by the agent how it stands.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from dispatcher.clock import Clock
from dispatcher.core.model import Job
from dispatcher.core.reconcile import DIFFERENCES, Finding, Kind, Seen, Shown, reconcile
from dispatcher.errors import AgentRefusal, HostError
from dispatcher.executors.base import Executor
from dispatcher.fleet import Fleet
from dispatcher.session import HostSession
from dispatcher.store.base import Store
from dispatcher.store.rows import FindingRow
from worker_agent.protocol import AttemptRef, AttemptState, AttemptStatus

log = logging.getLogger("cosma")


def seen_of(statuses: Sequence[AttemptStatus]) -> list[Seen]:
    """As the pure comparison reads them; what never started is no attempt."""
    return [
        Seen(
            acquisition=PurePosixPath(status.run_dir).parent.name,
            job=PurePosixPath(status.run_dir).name,
            attempt=status.attempt,
            shown=Shown(status.state.value),
        )
        for status in statuses
        if status.state is not AttemptState.NEVER_STARTED
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciler:
    fleet: Fleet
    store: Store
    clock: Clock
    session: Callable[[str], HostSession]
    jobs: Callable[[], Mapping[str, Job]]
    epoch: int
    every_s: float = 3600.0
    compared: dict[str, float] = field(default_factory=dict)  # host -> when, monotonic

    def anew(self, name: str) -> None:
        """At the next occasion, however short ago the last comparison was."""
        self.compared.pop(name, None)

    async def when_due(self, name: str) -> None:
        """At the start, after every loss of the host, and once in a while. Raises TakenOver."""
        now = self.clock.monotonic()
        if now < self.compared.get(name, float("-inf")) + self.every_s:
            return
        self.compared[name] = now
        if not await self.host(name):
            self.anew(name)

    async def host(self, name: str) -> bool:
        """Compare once; False when that is to be done again soon: the host could not be asked, or
        something that is over still runs there. Raises TakenOver."""
        before = dict(self.jobs())
        try:
            executor = self.fleet.executor(name)
            statuses = await executor.list_attempts()
            await self._sweep(name, executor)
        except HostError as error:
            log.debug("%s: not compared with the database: %s", name, error.line)
            return False
        findings = reconcile(name, before, seen_of(statuses), dict(self.jobs()))
        await self._record(name, findings)
        ended = True
        for finding in findings:
            if finding.kind is Kind.ABSENT:
                rebooted = await self._rebooted(name, finding)
                await self.session(name).absent(finding.job, finding.attempt, rebooted=rebooted)
            elif finding.kind is Kind.SUPERSEDED:
                ended = await self._cancel(name, executor, finding) and ended
        return ended

    async def _sweep(self, name: str, executor: Executor) -> None:
        """A dispatcher that died within a transfer has left its key behind."""
        try:
            swept = await executor.sweep_grants(self.epoch)
        except AgentRefusal as refusal:
            log.warning("%s: %s", name, refusal.line)
            return
        if swept:
            await self.store.record_event("grants_swept", host=name, payload={"keys": swept})

    async def _record(self, host: str, findings: Sequence[Finding]) -> None:
        now = self.clock.now()
        rows = [
            FindingRow(
                host=host,
                kind=item.kind.value,
                job=item.job,
                attempt=item.attempt,
                message=item.message,
                seen_at=now,
            )
            for item in findings
            if item.kind in DIFFERENCES
        ]
        known = {
            (row.kind, row.job, row.attempt)
            for row in await self.store.findings()
            if row.host == host
        }
        for row in rows:
            if (row.kind, row.job, row.attempt) in known:
                continue
            log.warning(
                "%s: %s attempt %d of %s: %s", host, row.kind, row.attempt, row.job, row.message
            )
            await self.store.record_event(
                f"attempt_{row.kind}",
                host=host,
                payload={"job": row.job, "attempt": row.attempt, "message": row.message},
            )
        await self.store.set_findings(host, rows)
        counts = Counter(item.kind.value for item in findings)
        if counts:
            await self.store.record_event("host_reconciled", host=host, payload=dict(counts))

    async def _rebooted(self, host: str, finding: Finding) -> bool:
        """Whether the host runs another boot than the one the attempt was sent to."""
        state = self.fleet.state(host)
        if state is None or state.facts is None:
            return False
        return any(
            lease.host_boot not in (None, state.facts.boot_id)
            for lease in await self.store.leases()
            if (lease.job, lease.attempt) == (finding.job, finding.attempt)
        )

    async def _cancel(self, host: str, executor: Executor, finding: Finding) -> bool:
        run_dir = f"{await executor.work_dir()}/{finding.acquisition}/{finding.job}"
        try:
            status = await executor.cancel(
                AttemptRef(run_dir=run_dir, attempt=finding.attempt), epoch=self.epoch
            )
        except HostError as error:
            log.warning("%s: %s was not cancelled: %s", host, finding.job, error.line)
            return False
        if status.state is AttemptState.RUNNING:
            log.warning("%s: attempt %d of %s does not end", host, finding.attempt, finding.job)
            return False
        await self.store.record_event(
            "attempt_cancelled",
            host=host,
            payload={"job": finding.job, "attempt": finding.attempt, "why": "superseded"},
        )
        return True
