"""Whether a job that is moved takes along what its stages made, and where it then goes on. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from dispatcher.core.model import Job, Stage, stages_of
from dispatcher.core.moves import needs_inputs
from dispatcher.core.need import GPU_STAGES, Needs
from dispatcher.core.views import GpuView

PATIENCE_SHARE = 0.1  # of the time that the old host's files save
PATIENCE_MOST_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of bringing what the finished stages made, against making it again from the source."""

    bytes: int
    link_bytes_s: float  # the slower of the two hosts' links; 0: not known
    source_bytes: int
    stages_s: float  # what the finished stages would take once more

    @property
    def bring_s(self) -> float | None:
        return self.bytes / self.link_bytes_s if self.link_bytes_s > 0 else None

    @property
    def redo_s(self) -> float:
        source_s = self.source_bytes / self.link_bytes_s if self.link_bytes_s > 0 else 0.0
        return source_s + self.stages_s

    @property
    def worth(self) -> bool:
        """Over a link that was never measured, work that is done is kept."""
        return self.bring_s is None or self.bring_s <= self.redo_s

    @property
    def patience_s(self) -> float:
        """How long an old host that does not answer is waited for."""
        return min(PATIENCE_MOST_S, PATIENCE_SHARE * self.redo_s)


def cost(
    job: Job, amount: int, links_bytes_s: Collection[float], needs: Needs, gpu: GpuView | None
) -> Cost:
    """`gpu` is one that the new host would use. `links_bytes_s`: 0 for one that is not known."""
    stages = stages_of(job.kind)
    return Cost(
        bytes=amount,
        link_bytes_s=min((link for link in links_bytes_s if link > 0), default=0.0),
        source_bytes=job.input_bytes,
        stages_s=sum(
            needs.of(
                dataclasses.replace(job, stage=stage), gpu if stage in GPU_STAGES else None
            ).seconds.likely
            for stage in stages[: stages.index(job.stage)]
        ),
    )


def resume_stage(
    job: Job, made: Mapping[Stage, Collection[str]], missing: Collection[str]
) -> Stage | None:
    """The newest stage, up to the job's own, before which nothing is `missing`; None when that one
    reads the source. A stage that is not known to have made anything counts as missing."""
    stages = stages_of(job.kind)
    for stage in stages[: stages.index(job.stage)]:
        if not made.get(stage) or any(path in missing for path in made[stage]):
            return None if needs_inputs(job.kind, stage) else stage
    return job.stage
