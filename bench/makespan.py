"""24 jobs on four hosts: how much longer than they must take do they take, how long do GPUs wait
for a decision, and what does the dispatcher's own work cost?

Real sshd, agent, supervisor, store and dispatcher; only the stages' work is played
(bench/timed_stage.py). A host works on one extraction and one training at a time. A job's video is
pushed to its host and what it made is collected from there, as always. The stitch that follows, if
a host is large enough for it, counts in nothing.

Two shapes of a job:
  extract, GPU: two stages, FrameExtraction and Training, of 1.0-1.9 s each, seeded; they make the
      files of all eight. The table of stages is cut to these two in this process. It is the shape
      the dispatcher before this one, a prototype and an engine were measured with: 18.6, 1.40 and
      (without transfers) 1.01 times the bound.
  all eight: the pipeline as it is; the same two take 1.0-1.9 s, the other six do nothing but make
      their files: what six more attempts of every job cost. Figures with `_eight_stages`.

makespan: from the first job given a host to the last one collected; hosts are probed by then.
lower bound: max(sum of extractions, sum of trainings) / hosts, plus the shortest other of the two.
    Only the stages' own seconds: neither transfers nor processes are in it, though no training can
    begin before a video is on its host, and no stage without an interpreter that has started.
with processes: the same bound, each stage longer by the least that any stage process of the run
    took before and after its work: start an interpreter, import, hash, record. No dispatcher can
    take that away; how much of a makespan over the bound is its own doing shows against this one.
gpu_gap: for each training but the first of its host, how long no stage process had the GPU while a
    job of that host was ready for it: from the last thing one process did to the kernel's start
    time of the next.
gpu_gap_work: the same from work to work: also what one process does after its work (hash, record,
    store its files) and the next before (start its interpreter, import).
gpu_idle: as gpu_gap, also counting when no job was ready.
dispatcher_cpu_ms_per_job: user and system time of this process from the start of the dispatcher,
    included, to the last job collected, by jobs.

Medians of the runs. The disk's fsync is part of it; see --base for another disk.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import yaml

from bench.results import Result, parser, show
from bench.timed_stage import LONG_STAGES, SETTINGS, seconds
from dispatcher import event_loop
from dispatcher.core import model
from dispatcher.core.model import RECONSTRUCT_STAGES, JobState, Stage
from dispatcher.daemon import run_dispatcher
from dispatcher.embedded import EmbeddedHosts
from dispatcher.ingest import ingest
from dispatcher.settings import DispatcherSettings, PipelineConfig
from dispatcher.store.sqlite import SqliteStore

_CLIP_BYTES = 64_000
_SAMPLE_S = 0.05
_STAGE_PYTHON = """\
#!/bin/sh
if [ "$2" = worker_agent.stages ]; then shift 2; export {name}={settings}
exec {python} {script} "$@"; fi
exec {python} "$@"
"""


@dataclass(frozen=True, slots=True)
class Shape:
    """`stands_for`: whose files a stage makes; a stage that is not named makes its own."""

    suffix: str
    stages: tuple[Stage, ...]
    stands_for: dict[str, list[str]]


TWO = Shape(
    "",
    (Stage.FRAME_EXTRACTION, Stage.TRAINING),
    {
        "FrameExtraction": [stage.value for stage in RECONSTRUCT_STAGES[:5]],
        "Training": [stage.value for stage in RECONSTRUCT_STAGES[5:]],
    },
)
EIGHT = Shape("_eight_stages", RECONSTRUCT_STAGES, {})


@dataclass(frozen=True, slots=True)
class Worked:
    """One stage at work: seconds of CLOCK_BOOTTIME."""

    job: str
    stage: str
    host: str
    there_from: float
    began: float
    ended: float
    there_until: float


@dataclass(frozen=True, slots=True)
class Run:
    over_bound: float
    over_bound_with_processes: float
    gap_s: float
    gap_work_s: float
    idle_s: float
    cpu_ms: float


def lower_bound(seed: int, jobs: list[str], hosts: int, process_s: float = 0.0) -> float:
    """`process_s`: of each stage's process besides its work."""
    extract, train = (
        [seconds(seed, job, stage) + process_s for job in jobs] for stage in LONG_STAGES
    )
    if sum(extract) >= sum(train):
        return sum(extract) / hosts + min(train)
    return sum(train) / hosts + min(extract)


@dataclass(slots=True)
class Waits:
    """Of every GPU between two trainings, in seconds."""

    gaps: list[float] = field(default_factory=list)
    gaps_work: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)


def waits(worked: list[Worked], before_training: str) -> Waits:
    hosts = defaultdict(list)
    for row in worked:
        hosts[row.host].append(row)
    found = Waits()
    for rows in hosts.values():
        ready = {row.job: row for row in rows if row.stage == before_training}
        trainings = sorted(
            (row for row in rows if row.stage == Stage.TRAINING), key=lambda row: row.began
        )
        for index, row in enumerate(trainings[1:], start=1):
            last = trainings[index - 1]
            first = min(
                (ready[later.job] for later in trainings[index:]), key=lambda done: done.ended
            )
            found.gaps.append(row.there_from - max(last.there_until, first.there_until))
            found.gaps_work.append(row.began - max(last.ended, first.ended))
            found.idle.append(row.there_from - last.there_until)
    return found


def footage(folder: Path, jobs: int) -> None:
    """One real, short film for each job, no two alike."""
    film = folder.parent / "film.mp4"
    source = ("-f", "lavfi", "-i", "testsrc2=s=64x48:r=5:d=1")
    subprocess.run(["ffmpeg", "-v", "error", "-y", *source, str(film)], check=True)
    for number in range(jobs):
        clip = folder / "auv" / "C1" / f"s{number:02d}" / "GX010001.MP4"
        clip.parent.mkdir(parents=True)
        # A `free` box: readers of the container skip it (ISO/IEC 14496-12, 8.1.2).
        box = struct.pack(">I4s", 8 + _CLIP_BYTES, b"free") + os.urandom(_CLIP_BYTES)
        clip.write_bytes(film.read_bytes() + box)


async def queue_jobs(database: Path, folder: Path) -> list[str]:
    store = await SqliteStore.open(database)
    try:
        made = await ingest(
            store, str(folder), acquisition="bench",
            # What is timed is the dispatcher, not the trim of this machine's disk.
            config=PipelineConfig.model_validate({"reclaim": {"fstrim": "off"}}),
        )  # fmt: skip
        return [row.job for row in made]
    finally:
        await store.close()


def inventory(farm: EmbeddedHosts, stage_python: Path) -> Path:
    """The farm's own, with our stages."""
    value = yaml.safe_load(farm.inventory.read_text())
    value["defaults"]["stage_python"] = str(stage_python)
    value["defaults"]["disk"] = {"fstrim": "off"}
    farm.inventory.write_text(yaml.safe_dump(value, sort_keys=False))
    return farm.inventory


class CpuClock:
    """This process's CPU time at any moment while it runs, to a twentieth of a second, less what
    the clock takes itself."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(_SAMPLE_S):
            self._samples.append((time.time(), time.process_time() - time.thread_time()))

    def until(self, at: float) -> float:
        """Seconds of CPU from the start of the clock to Unix time `at`."""
        before = [cpu for when, cpu in self._samples if when <= at]
        return before[-1] - before[0]


def first_and_last(database: Path) -> tuple[float, float]:
    """Unix times: the first job given a host, the last one collected."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as reader:
        (first,) = reader.execute(
            "SELECT min(at) FROM events WHERE kind = 'host_assigned'"
        ).fetchone()
        (last,) = reader.execute(
            "SELECT max(at) FROM events JOIN jobs ON jobs.id = events.job"
            " WHERE events.kind = 'results_collected' AND jobs.kind = 'reconstruct'"
        ).fetchone()
    return float(first), float(last)


def measure(base: Path, shape: Shape, hosts: int, jobs: int, seed: int) -> Run:
    log = base / "worked.jsonl"
    given = {"log": str(log), "seed": seed, "stands_for": shape.stands_for}
    stage_python = base / "stage-python"
    stage_python.write_text(
        _STAGE_PYTHON.format(
            name=SETTINGS,
            settings=shlex.quote(json.dumps(given)),
            python=shlex.quote(sys.executable),
            script=shlex.quote(str(Path(__file__).with_name("timed_stage.py"))),
        )
    )
    stage_python.chmod(0o755)
    model.RECONSTRUCT_STAGES = shape.stages
    footage(base / "footage", jobs)
    settings = DispatcherSettings(database=base / "cosma.db", artifacts=base / "artifacts")
    queued = asyncio.run(queue_jobs(settings.database, base / "footage"))
    with EmbeddedHosts(hosts, base / "hosts") as farm:
        hosts_file = inventory(farm, stage_python)
        try:
            with CpuClock() as cpu:
                ended = event_loop.run(run_dispatcher(settings, hosts_file, once=True))
        finally:
            farm.power_off()
    undone = [job for job in queued if ended.jobs[job].state is not JobState.DONE]
    if undone:
        raise SystemExit(f"not done: {', '.join(undone)}; see {base}")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    worked = [
        Worked(
            row["job"], row["stage"], str(Path(row["run_dir"]).parent.parent), row["there_from"],
            row["began"], row["ended"], row["there_until"],
        )
        for row in rows
    ]  # fmt: skip
    before = shape.stages[shape.stages.index(Stage.TRAINING) - 1].value
    found = waits(worked, before)
    first, last = first_and_last(settings.database)
    process_s = min(
        row.began - row.there_from + row.there_until - row.ended
        for row in worked
        if row.stage in LONG_STAGES
    )
    return Run(
        over_bound=(last - first) / lower_bound(seed, queued, hosts),
        over_bound_with_processes=(last - first) / lower_bound(seed, queued, hosts, process_s),
        gap_s=statistics.mean(found.gaps),
        gap_work_s=statistics.mean(found.gaps_work),
        idle_s=statistics.mean(found.idle),
        cpu_ms=1000 * cpu.until(last) / jobs,
    )


def results(shape: Shape, runs: list[Run]) -> list[Result]:
    def median(name: str) -> float:
        values: list[float] = [getattr(run, name) for run in runs]
        return statistics.median(values)

    aim = shape is TWO  # what six attempts more cost is told, and has no target
    return [
        Result(
            name=f"makespan_over_lower_bound{shape.suffix}", value=median("over_bound"), unit="",
            better="lower", target=1.25 if aim else None,
        ),
        Result(
            name=f"makespan_over_bound_with_processes{shape.suffix}",
            value=median("over_bound_with_processes"), unit="", better="lower",
        ),
        Result(
            name=f"gpu_gap_mean_s{shape.suffix}", value=median("gap_s"), unit="s",
            better="lower", target=0.15 if aim else None,
        ),
        Result(
            name=f"gpu_gap_work_mean_s{shape.suffix}", value=median("gap_work_s"), unit="s",
            better="lower",
        ),
        Result(
            name=f"gpu_idle_mean_s{shape.suffix}", value=median("idle_s"), unit="s", better="lower"
        ),
        Result(
            name=f"dispatcher_cpu_ms_per_job{shape.suffix}", value=median("cpu_ms"), unit="ms",
            better="lower", target=40.0 if aim else None,
        ),
    ]  # fmt: skip


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--hosts", type=int, default=4)
    options.add_argument("--jobs", type=int, default=24)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--shape", choices=["two", "eight", "both"], default="both")
    options.add_argument("--base", type=Path, default=None, help="where databases and hosts lie")
    given = options.parse_args()
    logging.getLogger("asyncssh").setLevel(logging.ERROR)
    logging.getLogger("cosma").setLevel(logging.ERROR)
    shapes = {"two": [TWO], "eight": [EIGHT], "both": [TWO, EIGHT]}[given.shape]
    made: dict[str, list[Run]] = {shape.suffix: [] for shape in shapes}
    for seed in range(given.runs):
        for shape in shapes:
            with tempfile.TemporaryDirectory(dir=given.base) as base:
                run = measure(Path(base), shape, given.hosts, given.jobs, seed)
            print(f"seed {seed}{shape.suffix}: {run}", file=sys.stderr)
            made[shape.suffix].append(run)
    rows = [row for shape in shapes for row in results(shape, made[shape.suffix])]
    return show("makespan", rows, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
