"""What a job leaves on its host, what of it later stages read, and until when it is kept. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from dispatcher.core.model import Job, JobState, Stage

DAY_S = 86_400.0


class Kind(StrEnum):
    """The names are keys of the configuration."""

    SOURCE_VIDEOS = "source_videos"  # and the members' files of a stitch
    FRAMES = "frames"
    FEATURES = "features"
    TRAINING = "training"
    RESULTS = "results"


# The directories of what a job makes; source videos go file by file, each with its proof.
MADE: dict[Kind, str] = {
    Kind.FRAMES: "frames",
    Kind.FEATURES: "sfm",
    Kind.TRAINING: "train",
    Kind.RESULTS: "output",
}
_RECONSTRUCTION = frozenset({Kind.FRAMES, Kind.RESULTS})
# What must lie on the host for the job to go on at a stage. The results of all earlier stages are
# in the same directory as the checkpoint.
_READS: dict[Stage, frozenset[Kind]] = {
    Stage.METADATA_EXTRACTION: _RECONSTRUCTION,
    Stage.MANIFEST_GENERATION: _RECONSTRUCTION,
    Stage.COLMAP_RECONSTRUCTION: _RECONSTRUCTION,
    Stage.TRAINING: _RECONSTRUCTION | {Kind.FEATURES},
    Stage.PLY_EXPORT: frozenset({Kind.TRAINING, Kind.RESULTS}),
    Stage.SPLAT_EXPORT: frozenset({Kind.TRAINING, Kind.RESULTS}),
}


class Until(StrEnum):
    """Until when a kind is kept, beside a number of days."""

    VERIFIED = "when_verified"  # what was made of it is
    STITCHED = "until_stitched"  # all jobs of its acquisition have settled
    EVER = "keep"


Rule = Until | float  # days since the job was done
Policy = Mapping[Kind, Rule]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the rules ask for, of a job that is done: its results lie verified elsewhere."""

    done_at: float  # wall clock
    stitched: bool  # nothing of its acquisition is unsettled


def gone(job: Job, stage: Stage) -> bool:
    """Whether something that the job would read at `stage` was removed from its host."""
    return bool(_READS.get(stage, frozenset()) & set(job.reclaimed))


def due(job: Job, policy: Policy, facts: Facts, now: float) -> tuple[Kind, ...]:
    """What is of no more use on the job's host."""
    return tuple(kind for kind in _left(job) if _when(policy[kind], facts) <= now)


def next_due(job: Job, policy: Policy, facts: Facts, now: float) -> float | None:
    """When time alone makes something else due; None: never."""
    whens = (_when(policy[kind], facts) for kind in _left(job))
    return min((at for at in whens if now < at < float("inf")), default=None)


def _left(job: Job) -> list[Kind]:
    if job.state is not JobState.DONE or job.host is None:
        return []
    left = [kind for kind in MADE if kind not in job.reclaimed]
    return [Kind.SOURCE_VIDEOS, *left] if job.inputs_on_host else left


def _when(rule: Rule, facts: Facts) -> float:
    match rule:
        case Until.VERIFIED:
            return facts.done_at
        case Until.STITCHED:
            return facts.done_at if facts.stitched else float("inf")
        case Until.EVER:
            return float("inf")
    return facts.done_at + float(rule) * DAY_S


def share_of_trim(freed: int, freed_in_all: int, trimmed: int | None) -> int | None:
    """Of what one trim gave back, the part that belongs to one of the removals before it.

    The kernel counts all free space that it told the device of, so that its figure is a bound
    only: what was not freed was not given back.
    """
    if trimmed is None:
        return None
    return freed if trimmed >= freed_in_all else freed * trimmed // freed_in_all
