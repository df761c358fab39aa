"""Until when a job's files stay on its host: asks the rules, and says what is due."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dispatcher.clock import Clock
from dispatcher.core.effects import Effect, ReclaimInputs, ReclaimMade
from dispatcher.core.model import SETTLED, Job, JobState
from dispatcher.core.reclaiming import Facts, Kind, Policy, Until, due, next_due
from dispatcher.fleet import Fleet
from dispatcher.jobspec import JobSpecs
from dispatcher.reclaim_policy import ReclaimRules, policy_of


class _Look(NamedTuple):
    """With what a job's files were looked at, and when time makes something else due. While that
    is not so, and nothing differs, nothing is due that was not."""

    revision: int
    stitched: bool
    of_host: ReclaimRules
    later: float | None


@dataclass(slots=True)
class GivingBack:
    fleet: Fleet
    specs: JobSpecs
    clock: Clock
    _asked: set[tuple[str, int, Kind]] = field(default_factory=set)  # job, attempt, kind
    _later: dict[str, float] = field(default_factory=dict)  # acquisition -> when to look again
    # Of jobs that are done, by (job, attempt): their own rules, and since when they are done. Each
    # one's end looks at all of its acquisition.
    _known: dict[tuple[str, int], tuple[Mapping[str, Any], float]] = field(default_factory=dict)
    _looked: dict[str, _Look] = field(default_factory=dict)  # by job that is done

    async def policy(self, job: Job, host: str) -> Policy:
        """What the inventory says of the host goes before what the job was given."""
        return policy_of((await self.specs.config(job)).get("reclaim", {}), self._of_host(host))

    async def trim_mode(self, job: Job, host: str) -> str:
        state = self.fleet.state(host)
        of_host = state.host.disk.fstrim if state is not None else "auto"
        if of_host != "auto":
            return of_host
        return str((await self.specs.config(job)).get("reclaim", {}).get("fstrim", "auto"))

    async def due(self, job: Job) -> tuple[Kind, ...]:
        """What of a job's files is of no more use on its host."""
        if job.state is not JobState.DONE or job.host is None:
            return ()
        jobs = await self.specs.store.load_jobs(acquisition=job.acquisition)
        stitched = all(one.state in SETTLED for one in jobs)
        policy, facts = await self._rules(job, job.host, stitched)
        return due(job, policy, facts, self.clock.now())

    async def effects(self, jobs: Iterable[Job]) -> list[tuple[Job, Effect]]:
        """What is to be removed now; each is told once. `jobs`: all of some acquisitions."""
        by_acquisition: dict[str, list[Job]] = {}
        for job in jobs:
            by_acquisition.setdefault(job.acquisition, []).append(job)
        found: list[tuple[Job, Effect]] = []
        for members in by_acquisition.values():
            stitched = all(one.state in SETTLED for one in members)
            for job in members:
                if job.state is JobState.DONE and job.host is not None:
                    found += await self._of(job, job.host, stitched)
        return found

    def overdue(self) -> set[str]:
        """Acquisitions of whose jobs something became due by the time alone."""
        now = self.clock.now()
        ready = {acquisition for acquisition, at in self._later.items() if at <= now}
        for acquisition in ready:
            del self._later[acquisition]
        return ready

    async def _of(self, job: Job, host: str, stitched: bool) -> list[tuple[Job, Effect]]:
        if len(job.reclaimed) == len(Kind) - 1 and not job.inputs_on_host:
            return []
        now, of_host = self.clock.now(), self._of_host(host)
        if self._looked.get(job.id) == _Look(job.revision, stitched, of_host, None):
            return []
        policy, facts = await self._rules(job, host, stitched)
        later = next_due(job, policy, facts, now)
        self._looked[job.id] = _Look(job.revision, stitched, of_host, later)
        if later is not None:
            known = self._later.get(job.acquisition, later)
            self._later[job.acquisition] = min(known, later)
        kinds = [
            kind
            for kind in due(job, policy, facts, now)
            if (job.id, job.attempt, kind) not in self._asked
        ]
        self._asked.update((job.id, job.attempt, kind) for kind in kinds)
        effects: list[Effect] = []
        if Kind.SOURCE_VIDEOS in kinds and policy[Kind.SOURCE_VIDEOS] is not Until.VERIFIED:
            # By the frames, as long as these are there. Else it was asked for when they were made.
            effects.append(ReclaimInputs(job=job.id, host=host))
        if made := tuple(str(kind) for kind in kinds if kind is not Kind.SOURCE_VIDEOS):
            effects.append(ReclaimMade(job=job.id, host=host, kinds=made))
        return [(job, effect) for effect in effects]

    def ended(self, job: Job, at: float, config: Mapping[str, Any]) -> None:
        """Its results were collected."""
        self._known[job.id, job.attempt] = config.get("reclaim", {}), at

    async def _rules(self, job: Job, host: str, stitched: bool) -> tuple[Policy, Facts]:
        """Of a job that is done."""
        key = (job.id, job.attempt)
        if key not in self._known:
            of_job = (await self.specs.config(job)).get("reclaim", {})
            ends = await self.specs.store.events(job=job.id, kind="results_collected")
            self._known[key] = of_job, ends[-1].at if ends else job.created_at
        of_job, done_at = self._known[key]
        policy = policy_of(of_job, self._of_host(host))
        return policy, Facts(done_at=done_at, stitched=stitched)

    def _of_host(self, host: str) -> ReclaimRules:
        state = self.fleet.state(host)
        return state.host.reclaim if state is not None else ReclaimRules()
