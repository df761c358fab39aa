"""Makes the stitches that an acquisition can have now: jobs, or a pass-through row."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence

from dispatcher.clock import Clock
from dispatcher.core.decisions import Decision, in_force
from dispatcher.core.model import SETTLED, Job, JobState, Stage
from dispatcher.core.plan import (
    SegmentView,
    Sooner,
    StitchPlan,
    StitchView,
    plan_stitches,
    stitch_job,
)
from dispatcher.core.work_size import shape_of
from dispatcher.requests import DECISIONS, decided
from dispatcher.store.base import Store
from dispatcher.store.rows import Run, Segment, Stitch

log = logging.getLogger("cosma")

_DEADLINES_S = 60.0  # between two looks


def segment_view(segment: Segment, state: JobState) -> SegmentView:
    """As planning sees it; `state` is that of its job."""
    return SegmentView(
        job=segment.job, auv=segment.auv, name=segment.label, state=state,
        created_at=segment.created_at,
    )  # fmt: skip


def stitch_view(stitch: Stitch, decisions: Iterable[Decision]) -> StitchView:
    """`decisions` of operators about any pairs."""
    now = tuple(one.id for one in in_force(decisions, stitch.members))
    return StitchView(
        id=stitch.id,
        level=stitch.level,
        auv=stitch.auv,
        members=stitch.members,
        state=stitch.state,
        version=stitch.version,
        outdated=not stitch.passthrough and now != stitch.decisions,
    )


def sooner_of(run: Run | None) -> Sooner | None:
    config = (run.config if run else {}).get("stitch", {})
    quorum, hours = config.get("quorum"), config.get("deadline_h")
    if quorum is None and hours is None:
        return None
    return Sooner(quorum=quorum, deadline_s=None if hours is None else 3600.0 * hours)


class Stitching:
    """One planning at a time: two would make the same stitch twice."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._planning = asyncio.Lock()
        self._sooner_by: dict[str, Sooner | None] = {}  # job; a job's config never changes

    async def plan(self, acquisition: str) -> bool:
        """Whether anything was made."""
        made = False
        async with self._planning:
            # A pass-through is done at once and may be all that a cross-AUV stitch waits for.
            while plans := await self._plans(acquisition):
                for plan in plans:
                    await self._make(acquisition, plan)
                made = True
                if not any(plan.passthrough for plan in plans):
                    break
        return made

    async def _plans(self, acquisition: str) -> tuple[StitchPlan, ...]:
        segments, stitches, requests = await self._store.stitchable(acquisition, DECISIONS)
        decisions = decided(requests)
        return plan_stitches(
            acquisition,
            segments,
            [stitch_view(stitch, decisions) for stitch in stitches],
            await self._sooner(segments),
            self._clock.now(),
        )

    async def keep_deadlines(self, look_again: Callable[[], None]) -> None:
        """Without end: a deadline passes while nothing else happens."""
        while True:
            await asyncio.sleep(_DEADLINES_S)
            for acquisition in await self._store.acquisitions():
                segments = await self._store.segment_views(acquisition.id)
                if any(segment.state not in SETTLED for segment in segments):
                    sooner = await self._sooner(segments)
                    waits = sooner is not None and sooner.deadline_s is not None
                    if waits and await self.plan(acquisition.id):
                        look_again()

    async def _sooner(self, segments: Sequence[SegmentView]) -> Sooner | None:
        """By the config of the acquisition's first segment, as the stitch itself."""
        if all(segment.state in SETTLED for segment in segments):
            return None
        first = min(segments, key=lambda s: s.created_at).job
        if first not in self._sooner_by:
            self._sooner_by[first] = sooner_of(await self._store.run(first))
        return self._sooner_by[first]

    async def _make(self, acquisition: str, plan: StitchPlan) -> None:
        now = self._clock.now()
        decisions = in_force(decided(await self._store.requests(kinds=DECISIONS)), plan.members)
        stitch = Stitch(
            id=plan.id,
            acquisition=acquisition,
            level=plan.level,
            auv=plan.auv,
            version=plan.version,
            members=plan.members,
            state=JobState.DONE if plan.passthrough else JobState.QUEUED,
            created_at=now,
            job=None if plan.passthrough else plan.id,
            passthrough=plan.passthrough,
            decisions=tuple(one.id for one in decisions),
        )
        if plan.passthrough:
            await self._store.create_stitch(stitch, None, None)
            log.info("%s: one segment, passed through", plan.id)
            return
        segments = await self._store.segments(acquisition=acquisition)
        job = await self._sized(stitch_job(acquisition, plan, now), plan)
        await self._store.create_stitch(stitch, job, await self._run(plan, segments, now))
        log.info("%s: queued, %d members", plan.id, len(plan.members))

    async def _sized(self, job: Job, plan: StitchPlan) -> Job:
        """As much work as all its members are together."""
        stitches = await self._store.stitches(acquisition=job.acquisition)
        through = {one.id: one.members[0] for one in stitches if one.passthrough}
        wanted = {through.get(member, member) for member in plan.members}
        jobs = await self._store.load_jobs(acquisition=job.acquisition)
        members = [one for one in jobs if one.id in wanted]
        return dataclasses.replace(
            job,
            frames=sum(one.frames for one in members),
            cap=sum([await self._gaussians(one) for one in members]),
        )

    async def _gaussians(self, member: Job) -> int:
        """Those it was trained to; a stitch has as many as its members."""
        trained = [
            row.metrics.get("gaussians")
            for row in await self._store.stage_metrics(member.id)
            if row.stage is Stage.TRAINING
        ]
        known = [count for count in trained if isinstance(count, int) and count > 0]
        return known[-1] if known else shape_of(member, Stage.TRAINING).cap

    async def _run(self, plan: StitchPlan, segments: list[Segment], now: float) -> Run:
        """The config of the acquisition's first segment; members are the parents on record."""
        first = await self._store.run(min(segments, key=lambda s: s.created_at).job)
        config = first.config if first else {}
        text = json.dumps(config, sort_keys=True, separators=(",", ":"))
        return Run(
            job=plan.id,
            config=config,
            sha256=hashlib.sha256(text.encode()).hexdigest(),
            provenance={"parents": list(plan.members)},
            created_at=now,
        )
