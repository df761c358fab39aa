"""The farm that bench/simulate.py plays, and what happens on it.

GPUs of 12, 24, 48 and 80 GB with speeds of their own, one to four a host; segments of three AUVs a
survey with their stitches; seconds drawn from what was learned; every fiftieth training fails.
"""

from __future__ import annotations

import itertools
import math
import random
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from dispatcher.core.expected import expected
from dispatcher.core.model import RECONSTRUCT_STAGES, Job, JobKind, JobState, Reason, Stage
from dispatcher.core.need import Need, Needs, Observation
from dispatcher.core.outlook import chance, quantile
from dispatcher.core.place import GPU_STAGES, Policy
from dispatcher.core.plan import SegmentView
from dispatcher.core.snapshot import Snapshot
from dispatcher.core.views import GpuView, HostView
from dispatcher.core.work_size import shape_of

GIB = 1 << 30
PIXELS = 960 * 540
STEPS = 15_000
AUVS = 3
SEGMENTS = 16  # of one AUV in one survey


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    mib: int
    speed: float  # of a training, relative to the prior of dispatcher.core.expected
    share: float  # of the farm's hosts


MODELS = (
    Model("12 GB", 12_288, 0.5, 0.35),
    Model("24 GB", 24_576, 1.0, 0.35),
    Model("48 GB", 49_152, 1.0, 0.20),
    Model("80 GB", 81_920, 2.0, 0.10),
)
# Gaussians, and the share of segments with so many: the last three fit only 24, 48 and 80 GB.
CAPS = (
    (1_000_000, 0.40), (2_000_000, 0.28), (4_000_000, 0.20), (8_000_000, 0.08),
    (16_000_000, 0.03), (40_000_000, 0.01),
)  # fmt: skip
FAULTS = (
    (Reason.GPU_OUT_OF_MEMORY, 0.005),
    (Reason.STAGE_CRASHED, 0.01),
    (Reason.HOST_REBOOTED, 0.003),
    (Reason.TRAINING_DIVERGED, 0.002),
)


# --- the farm ---


def spread(number: int, step: float) -> float:
    """The number's place between 0 and 1: any run of numbers is spread evenly, so that a farm of
    ten has the same mix as one of a thousand. `step`: irrational."""
    return number * step % 1.0


def among(shares: Sequence[float], place: float) -> int:
    """Which of the shares, that come to 1, the place falls into."""
    return min(bisect_right(list(itertools.accumulate(shares)), place), len(shares) - 1)


def make_hosts(count: int) -> tuple[HostView, ...]:
    shares = [model.share for model in MODELS]
    return tuple(_host(n, MODELS[among(shares, spread(n, 2.0**0.5))]) for n in range(count))


def _host(number: int, model: Model) -> HostView:
    gpus = 1 + int(4 * spread(number, 3.0**0.5))
    return HostView(
        name=f"host-{number:04d}",
        reachable=True,
        gpus=tuple(
            GpuView(
                uuid=f"GPU-{number:04d}-{k}", name=model.name, kind="cuda", total_mib=model.mib,
                free_mib=model.mib,
            )
            for k in range(gpus)
        ),
        max_parallel={"extract": gpus, "sfm": gpus, "train": gpus, "stitch": 1},
        headroom_mib=512,
        cpu_cores=16 * gpus,
        ram_total_mib=65_536 * gpus,
        ram_free_mib=65_536 * gpus,
        link_bytes_s=110e6,
        disk_free_bytes=2000 * GIB,
        disk_reserve_bytes=2 * GIB,
    )  # fmt: skip


def make_jobs(count: int, rng: random.Random) -> tuple[Job, ...]:
    jobs = []
    for number in range(count):
        survey, place = divmod(number, AUVS * SEGMENTS)
        frames = round(min(900.0, rng.lognormvariate(math.log(300), 0.3)))
        jobs.append(
            Job(
                id=f"survey-{survey:04d}-{place:02d}",
                kind=JobKind.RECONSTRUCT,
                acquisition=f"survey-{survey:04d}",
                name=f"{place:02d}",
                auv=f"auv-{place % AUVS}",
                created_at=float(number),
                input_bytes=frames * 12_000_000,
                frames=frames,
                pixels=PIXELS,
                cap=CAPS[among([share for _, share in CAPS], spread(number, 5.0**0.5))][0],
                train_steps=STEPS,
            )
        )
    return tuple(jobs)


def make_needs(jobs: tuple[Job, ...], rng: random.Random) -> Needs:
    """Learned from forty runs of each stage on each model, which differ by their speed only."""
    runs = []
    for stage in (*RECONSTRUCT_STAGES, Stage.STITCH):
        spread_of_runs = [rng.lognormvariate(0.0, 0.15) for _ in range(40)]
        for model in MODELS if stage in GPU_STAGES else (None,):
            fitting = [job for job in jobs[:5000] if model is None or _fits(job, model)]
            runs += [_run(rng.choice(fitting), stage, model, noise) for noise in spread_of_runs]
    return Needs.learned_from(runs)


def _fits(job: Job, model: Model) -> bool:
    return expected(Stage.TRAINING, shape_of(job, Stage.TRAINING)).vram_mib <= 0.85 * model.mib


def _run(job: Job, stage: Stage, model: Model | None, noise: float) -> Observation:
    cost = expected(stage, shape_of(job, stage))
    wall_s = cost.seconds * noise / (model.speed if model else 1.0)
    return Observation(
        stage=stage,
        device=model.name if model else "",
        frames=job.frames,
        pixels=job.pixels,
        cap=job.cap,
        wall_s=wall_s,
        cpu_s=wall_s * (2.0 if stage is Stage.COLMAP_RECONSTRUCTION else 1.0),
        peak_rss_mib=cost.ram_mib * 0.9,
        peak_vram_mib=cost.vram_mib * 0.9 if model else None,
        peak_disk_bytes=round(cost.disk_mib * (1 << 20)),
        train_steps=job.train_steps,
    )


def make_snapshot(hosts: int, jobs: int, seed: int) -> Snapshot:
    rng = random.Random(seed)
    everyone = make_jobs(jobs, rng)
    segments: dict[str, list[SegmentView]] = defaultdict(list)
    for job in everyone:
        view = SegmentView(job=job.id, auv=job.auv or "", name=job.name, state=JobState.QUEUED)
        segments[job.acquisition].append(view)
    return Snapshot(
        now=float(jobs),
        jobs=everyone,
        hosts=make_hosts(hosts),
        policy=Policy(needs=make_needs(everyone, rng)),
        segments={name: tuple(views) for name, views in segments.items()},
    )


# --- what happens on it ---


def seconds_for(seed: int, job: Job, need: Need) -> float:
    return quantile(need.seconds, chance(f"{seed}/{job.id}/{job.stage}"))


def fault_for(seed: int, job: Job) -> tuple[Reason, float] | None:
    if job.stage is not Stage.TRAINING:
        return None
    drawn = chance(f"{seed}/{job.id}/{job.attempt}/fault")
    for reason, share in FAULTS:
        if drawn < share:
            return reason, 0.5
        drawn -= share
    return None
