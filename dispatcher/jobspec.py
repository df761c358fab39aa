"""What a host is told about a job: its run directory, its inputs, its attempts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from dispatcher.core.model import Job, JobKind, Reason, Stage, stages_of
from dispatcher.core.plan import StitchLevel
from dispatcher.core.work_size import shrunk
from dispatcher.errors import HostError
from dispatcher.executors.base import Executor
from dispatcher.requests import DECISIONS, decided
from dispatcher.sources import split_remote
from dispatcher.store.base import Store
from dispatcher.store.rows import ArtifactRow, Attempt, Segment, Stitch
from worker_agent.protocol import PROTOCOL_VERSION, AttemptSpec

# What a stitch reads of each member, and of its own version before.
MEMBER_KINDS = ("ply", "registration")
REMEMBERED = 1000  # jobs: those that are worked on, and some more
EDGES_KIND = "stitch_edges"
# Of the version before: its pairs, and where it had its members.
_BEFORE = {EDGES_KIND: "input/edges.json", "stitch_report": "input/before.json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One file the first stage reads; `path` is relative to the run directory.

    `pull` is set when the host itself must fetch it (`host:/path`), else `local` is pushed. What
    a stage made lies on `made_on`, too: at `made_at`, relative to the work directory there.
    """

    path: str
    local: str
    bytes: int
    pull: str | None = None
    sha256: str | None = None
    made_on: str | None = None
    made_at: str = ""


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a stitch and the job whose artifacts it stands for."""

    name: str
    auv: str
    job: str


@dataclass(slots=True)
class _Fixed:
    """What of a job never changes: its configuration and its segment are as they were made."""

    config: dict[str, Any] | None = None
    inputs: dict[str, Any] | None = None  # as its stages are told of them


@dataclass(frozen=True, slots=True)
class JobSpecs:
    store: Store
    stage_python: Callable[[str], str | None]  # host -> interpreter named in the inventory
    _fixed: dict[str, _Fixed] = field(default_factory=dict, init=False)  # by job, newest last

    async def run_dir(self, job: Job, executor: Executor) -> str:
        return f"{await executor.work_dir()}/{job.acquisition}/{job.id}"

    async def config(self, job: Job) -> dict[str, Any]:
        fixed = self._fixed_of(job)
        if fixed.config is None:
            run = await self.store.run(job.id)
            if run is None:
                raise _missing(job, "its configuration is not in the database")
            fixed.config = run.config
        return shrunk(fixed.config, job.shrink, job.stride)

    def _fixed_of(self, job: Job) -> _Fixed:
        if job.id not in self._fixed and len(self._fixed) >= REMEMBERED:
            del self._fixed[next(iter(self._fixed))]
        return self._fixed.setdefault(job.id, _Fixed())

    async def inputs(self, job: Job) -> list[Input]:
        if job.kind is JobKind.STITCH:
            return [
                item
                for member in await self._members(job)
                for item in await self._files(member, job.acquisition)
            ] + list((await self._before(job)).values())
        segment = await self._segment(job)
        self._fixed_of(job).inputs = _told_of(segment)
        logs = {
            clip.log_name: _source(clip.log_name, clip.log, clip.log_bytes, None)
            for clip in segment.clips
            if clip.log is not None
        }
        clips = [_source(c.name, c.source, c.bytes, c.sha256) for c in segment.clips]
        return [*clips, *logs.values()]

    async def made(self, job: Job) -> dict[Stage, list[ArtifactRow]]:
        """What each finished stage of the job made, by its newest attempt that succeeded."""
        stages = stages_of(job.kind)
        finished = stages[: stages.index(job.stage)] if job.stage in stages else stages
        newest = {
            attempt.stage: attempt.attempt
            for attempt in await self.store.attempts(job.id)
            if attempt.state == "succeeded" and attempt.stage in finished
        }
        made: dict[Stage, list[ArtifactRow]] = {stage: [] for stage in newest}
        for row in await self.store.artifacts(job=job.id):
            for stage, attempt in newest.items():
                if row.attempt == attempt:
                    made[stage].append(row)
        return made

    async def left_on(self, job: Job, attempts: Iterable[Attempt]) -> tuple[str, ...]:
        """Hosts where one of the job's attempts once succeeded, and that were not cleared since."""
        elsewhere = [
            attempt
            for attempt in attempts
            if attempt.state == "succeeded" and attempt.host != job.host
        ]
        if not elsewhere:
            return ()
        cleared = {
            event.payload["host"]: event.at
            for event in await self.store.events(job=job.id, kind="leftovers_reclaimed")
        }
        used = {one.host for one in elsewhere if one.committed_at > cleared.get(one.host, 0)}
        return tuple(sorted(used))

    async def frames_done(self, job: Job, host: str) -> bool:
        """Whether the job's frames were extracted and verified on `host`."""
        return any(
            attempt.stage is Stage.FRAME_EXTRACTION
            and attempt.state == "succeeded"
            and attempt.host == host
            for attempt in await self.store.attempts(job.id)
        )

    async def attempt(
        self, job: Job, executor: Executor, *, epoch: int, stimulus: str, lease_s: float
    ) -> AttemptSpec:
        """Raises HostError with Reason.INPUT_MISSING when the database lacks a part of it."""
        gpu = job.reservation.gpu if job.reservation else None
        return AttemptSpec(
            protocol=PROTOCOL_VERSION,
            epoch=epoch,
            acquisition=job.acquisition,
            job=job.id,
            attempt=job.attempt,
            stage=job.stage.value,
            run_dir=await self.run_dir(job, executor),
            stage_python=self.stage_python(job.host or ""),
            lease_s=lease_s,
            gpu=gpu,
            gpu_kind="cpu" if gpu is None or gpu.startswith("CPU-") else "cuda",
            vram_mib=job.reservation.mib if job.reservation else 0,
            stimulus=stimulus,
            config=await self.config(job),
            inputs=await self._stage_inputs(job),
        )

    async def _stage_inputs(self, job: Job) -> dict[str, Any]:
        if job.kind is JobKind.STITCH:
            stitch = await self._stitch(job)
            before = {kind: item.path for kind, item in (await self._before(job)).items()}
            members = [
                {
                    "name": member.name,
                    "auv": member.auv,
                    **dict.fromkeys(MEMBER_KINDS),
                    **{kind: _member_path(member, kind) for kind in await self._rows(member)},
                }
                for member in await self._members(job)
            ]
            return {
                "level": stitch.level.value,
                "name": stitch.id,
                "members": members,
                "decisions": await self._decisions(stitch),
                "edges": [before[EDGES_KIND]] if before else [],
                "before": before.get("stitch_report"),
            }
        fixed = self._fixed_of(job)
        if fixed.inputs is None:
            fixed.inputs = _told_of(await self._segment(job))
        return fixed.inputs

    async def _segment(self, job: Job) -> Segment:
        rows = await self.store.segments(job=job.id)
        if not rows:
            raise _missing(job, "its segment is not in the database")
        return rows[0]

    async def _stitch(self, job: Job) -> Stitch:
        stitch = await self.store.stitch(job.id)
        if stitch is None:
            raise _missing(job, "its stitch is not in the database")
        return stitch

    async def _decisions(self, stitch: Stitch) -> list[dict[str, Any]]:
        """Those of operators that this version was planned with."""
        every = decided(await self.store.requests(kinds=DECISIONS))
        return [dataclasses.asdict(one) for one in every if one.id in stitch.decisions]

    async def _before(self, job: Job) -> dict[str, Input]:
        """By kind, what the newest version before it found out; nothing: it is the first."""
        stitch = await self._stitch(job)
        before = [
            one.job or ""
            for one in await self.store.stitches(acquisition=stitch.acquisition)
            if (one.level, one.auv) == (stitch.level, stitch.auv) and one.version < stitch.version
        ]
        for made_by in reversed(before):
            found = {
                row.kind: Input(
                    path=_BEFORE[row.kind],
                    local=row.local_path,
                    bytes=row.bytes,
                    sha256=row.sha256,
                    made_on=row.host,
                    made_at=f"{job.acquisition}/{made_by}/{row.path}",
                )
                for row in await self.store.artifacts(job=made_by)
                if row.kind in _BEFORE and row.local_path is not None
            }
            if EDGES_KIND in found:
                return found
        return {}

    async def _members(self, job: Job) -> list[Member]:
        stitch = await self._stitch(job)
        if stitch.level is StitchLevel.PER_AUV:
            return [Member(name=m, auv=stitch.auv or "", job=m) for m in stitch.members]
        members = []
        for stitch_id in stitch.members:
            member = await self.store.stitch(stitch_id)
            if member is None:
                raise _missing(job, f"its member {stitch_id} is not in the database")
            # A pass-through made nothing of its own: its one segment stands for it.
            made_by = member.members[0] if member.passthrough else member.job or member.id
            members.append(Member(name=member.id, auv=member.auv or "", job=made_by))
        return members

    async def _rows(self, member: Member) -> dict[str, ArtifactRow | None]:
        """By kind, what a stitch reads of it; None: it is not there. What was reconstructed without
        camera poses has no registration, and is read without."""
        rows = {row.kind: row for row in await self.store.artifacts(job=member.job)}
        return {kind: rows.get(kind) for kind in MEMBER_KINDS if kind == "ply" or kind in rows}

    async def _files(self, member: Member, acquisition: str) -> list[Input]:
        files = []
        for kind, row in (await self._rows(member)).items():
            if row is None or row.local_path is None:
                raise HostError(
                    Reason.INPUT_MISSING,
                    f"no {kind} of {member.name} in the artifact store",
                    where=member.job,
                    fix=f"run it again: cosma job rerun {member.job} --from PlyExport",
                )
            files.append(
                Input(
                    path=_member_path(member, kind),
                    local=row.local_path,
                    bytes=row.bytes,
                    sha256=row.sha256,
                    made_on=row.host,
                    made_at=f"{acquisition}/{member.job}/{row.path}",
                )
            )
        return files


def _source(name: str, source: str, size: int, sha256: str | None) -> Input:
    return Input(
        path=f"input/{name}",
        local=source,
        pull=source if split_remote(source) else None,
        bytes=size,
        sha256=sha256,
    )


def _told_of(segment: Segment) -> dict[str, Any]:
    return {
        "segment": segment.label,
        "auv": segment.auv,
        "clips": [
            {"name": clip.name, "order": clip.order, "recorded_at": clip.recorded_at,
             "bytes": clip.bytes, "nav": clip.log_name or None}
            for clip in segment.clips
        ],
    }  # fmt: skip


def _member_path(member: Member, kind: str) -> str:
    suffix = "ply" if kind == "ply" else "npz"
    return f"input/{member.name}.{suffix}"


def _missing(job: Job, what: str) -> HostError:
    return HostError(Reason.INPUT_MISSING, what, where=job.id, fix="ingest it again")
