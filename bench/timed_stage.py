"""The stage process of `bench/makespan.py`: as `worker_agent.stages` runs one, but FrameExtraction
and Training take their seconds, and the other stages are as short as a stage can be.

`python timed_stage.py <attempt>/started.json`. COSMA_BENCH is a JSON object: `log`, where one line
for each stage says in seconds of CLOCK_BOOTTIME when its process was there and when it worked;
`seed`; and `stands_for`, which stages' files each stage makes besides its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import time
from pathlib import Path

from worker_agent import clock
from worker_agent.processes import stat_of
from worker_agent.protocol import AttemptSpec
from worker_agent.stages import __main__ as runner
from worker_agent.stages import registry, rehearsal
from worker_agent.stages.api import Artifacts, Reporter

SETTINGS = "COSMA_BENCH"
LONG_STAGES = ("FrameExtraction", "Training")
SHORTEST_S, LONGEST_S = 1.0, 1.9
_PROGRESS_EVERY_S = 0.5
worked: dict[str, str | float] = {}


def seconds(seed: int, job: str, stage: str) -> float:
    """How long `stage` of `job` works: uniform between SHORTEST_S and LONGEST_S, 0 for the others.
    Depends on nothing else, so that the lower bound can be computed from it."""
    if stage not in LONG_STAGES:
        return 0.0
    drawn = hashlib.sha256(f"{seed}/{job}/{stage}".encode()).digest()
    share: float = int.from_bytes(drawn[:4], "big") / 0xFFFFFFFF
    return SHORTEST_S + (LONGEST_S - SHORTEST_S) * share


def main(spec: AttemptSpec, report: Reporter) -> Artifacts:
    """Make the files of the stage (and of those it stands for), small but real, and be at work
    until the stage's seconds are over: the files are part of them."""
    given = json.loads(os.environ[SETTINGS])
    began = clock.boottime()
    end = time.monotonic() + seconds(given["seed"], spec.job, spec.stage)
    made = [
        rehearsal.main(dataclasses.replace(spec, stage=stage), report)
        for stage in given["stands_for"].get(spec.stage, [spec.stage])
    ]
    while (left := end - time.monotonic()) > 0:
        report.progress(0.0, f"{left:.1f} s left")
        time.sleep(min(left, _PROGRESS_EVERY_S))
    worked.update(
        job=spec.job, stage=spec.stage, run_dir=spec.run_dir, began=began, ended=clock.boottime()
    )
    return Artifacts(
        files=tuple(file for part in made for file in part.files),
        metrics=made[-1].metrics,
        completed={key: value for part in made for key, value in part.completed.items()},
    )


def note(there_from: float) -> None:
    line = {**worked, "there_from": there_from, "there_until": clock.boottime()}
    with Path(json.loads(os.environ[SETTINGS])["log"]).open("ab", buffering=0) as log:
        log.write(json.dumps(line).encode() + b"\n")


def process_start() -> float:
    """As the kernel has it, to a clock tick: proc_pid_stat(5)."""
    stat = stat_of(os.getpid())
    assert stat is not None
    return stat.start_ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    rehearsal.SHORTEST_S = rehearsal.LONGEST_S = 0.0
    sys.modules["worker_agent.stages.timed"] = sys.modules[__name__]
    registry.STAGES = {name: registry.StageEntry("timed") for name in registry.STAGES}
    code = runner.main(sys.argv[1:])
    note(process_start())
    runner.end(code)
