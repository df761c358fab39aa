"""SfM on a small clip, struck in each of its steps: is the next attempt's result the same?

A step's process is aborted, it is killed, or the whole stage is (SIGKILL to all its processes), as
soon as the step has got so far: begun, so many images or pairs in its database, its files there.
Then the stage runs once more, undisturbed. One thread; nothing is played.

same[STEP]: share of the strikes after which model, report and sidecar are bit for bit those of a
    run that was never struck, and no step that had ended was computed again but the last, which
    publishes what is known by then.
A mapper that aborts is not struck here: the stage goes on without it, to another model.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.results import Result, parser, show
from tests.sfm_world import SFM, film, gravel, spec_for
from worker_agent.protocol import AttemptSpec
from worker_agent.stages import frames, manifest, metadata, validate
from worker_agent.stages.api import Reporter
from worker_agent.stages.sfm_kept import WORK
from worker_agent.stages.sfm_process import counts

CONFIG = {
    "frames": {"fps": 5.0, "width": 640, "height": None, "min_frames": 8},
    "sfm": SFM | {"max_features": 500, "overlap": 4},
}
STEPS = ("extract", "match", "map_global", "finish")
LIMIT_S = 120.0
TRIES = 5  # until a strike comes in time
# Run by itself, so that it has processes of its own to be killed.
STAGE = """
import json, os, sys, zlib
from worker_agent.protocol import AttemptSpec
from worker_agent.stages import sfm
from worker_agent.stages.api import Reporter
spec = AttemptSpec.from_dict(json.loads(sys.argv[1]))
events = os.open("events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
sfm.main(spec, Reporter(events, 1))
"""
Seen = Callable[[Path], bool]


def database(run_dir: Path) -> tuple[int, int]:
    return counts(run_dir / "sfm" / "database.db")


def is_there(pattern: str) -> Seen:
    return lambda run_dir: any(run_dir.glob(pattern))


# How far a step has got when it is struck.
MOMENTS: list[tuple[str, str, Seen]] = [
    ("extract", "begun", is_there(f"{WORK}/extract.log")),
    ("extract", "1 image", lambda run_dir: database(run_dir)[0] >= 1),
    ("extract", "6 images", lambda run_dir: database(run_dir)[0] >= 6),
    ("match", "begun", is_there(f"{WORK}/match.log")),
    ("match", "5 pairs", lambda run_dir: database(run_dir)[1] >= 5),
    ("map_global", "begun", is_there(f"{WORK}/sequential_global")),
    ("map_global", "a file of its model", is_there(f"{WORK}/sequential_global/*/*")),
    ("finish", "begun", is_there(f"{WORK}/finish.log")),
    ("finish", "a file of its model", is_there(f"{WORK}/published/*")),
    ("finish", "its sidecar", is_there("output/registration.npz")),
]
KINDS = ("abort", "kill", "kill the stage")


def started(run_dir: Path) -> subprocess.Popen[bytes]:
    spec = spec_for(run_dir, CONFIG, ["GX010001.MP4"])
    root = str(Path(__file__).resolve().parent.parent)
    return subprocess.Popen(
        [sys.executable, "-c", STAGE, spec.to_json()],
        cwd=run_dir,
        env=os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def strike(stage: subprocess.Popen[bytes], run_dir: Path, seen: Seen, kind: str) -> bool:
    """False when what was to be struck had ended before."""
    children = Path(f"/proc/{stage.pid}/task/{stage.pid}/children")
    while stage.poll() is None:
        struck = children.read_text().split() if seen(run_dir) else []
        if struck and kind == "kill the stage":
            os.killpg(stage.pid, signal.SIGKILL)
        for pid in map(int, struck):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGABRT if kind == "abort" else signal.SIGKILL)
        if struck:
            return stage.wait(LIMIT_S) != 0
        time.sleep(0.001)
    return False


def digests(run_dir: Path) -> dict[str, str]:
    made = [*(run_dir / "sfm" / "model").glob("*"), run_dir / "output" / "sfm.json"]
    made.append(run_dir / "output" / "registration.npz")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in made}


def ended(run_dir: Path) -> set[str]:
    """The answers that steps have left; what is published is made anew in any case."""
    names = {path.name for path in run_dir.glob(f"{WORK}/*.answer.json")}
    return names - {"finish.answer.json"}


def prepared(base: Path) -> Path:
    run_dir = base / "prepared"
    film(run_dir / "input" / "GX010001.MP4", gravel(9, 0.12)[0])
    spec: AttemptSpec = spec_for(run_dir, CONFIG, ["GX010001.MP4"])
    with (run_dir / "events.jsonl").open("ab") as events:
        for stage in (validate, frames, metadata, manifest):
            stage.main(spec, Reporter(events.fileno(), 1))
    return run_dir


def survived(source: Path, run_dir: Path, seen: Seen, kind: str, whole: dict[str, Any]) -> str:
    """What is wrong after a strike; nothing: ""."""
    for _ in range(TRIES):
        shutil.copytree(source, run_dir)
        if strike(started(run_dir), run_dir, seen, kind):
            break
        shutil.rmtree(run_dir)
    else:
        return f"not struck in {TRIES} runs"
    try:
        kept = ended(run_dir)
        again = started(run_dir)
        computed: set[str] = set()
        logs = {path: path.stat().st_mtime_ns for path in run_dir.glob(f"{WORK}/*.log")}
        while again.poll() is None:
            for path, before in logs.items():
                if path.exists() and path.stat().st_mtime_ns != before:
                    computed.add(path.stem)
            time.sleep(0.02)
        twice = [step for step in computed if any(step in name for name in kept)]
        if again.returncode:
            return f"the next attempt ended with exit {again.returncode}"
        if digests(run_dir) != whole:
            return "the next attempt gave another result"
        return f"computed again: {', '.join(twice)}" if twice else ""
    finally:
        shutil.rmtree(run_dir)


def main() -> int:
    given = parser(__doc__).parse_args()
    good: dict[str, list[bool]] = {step: [] for step in STEPS}
    with tempfile.TemporaryDirectory() as base:
        source = prepared(Path(base))
        run_dir = Path(base) / "run"
        shutil.copytree(source, run_dir)
        if started(run_dir).wait(LIMIT_S):
            print("SfM does not end well without faults", file=sys.stderr)
            return 1
        whole = digests(run_dir)
        shutil.rmtree(run_dir)
        for step, moment, seen in MOMENTS:
            for kind in KINDS:
                if kind == "abort" and step.startswith("map"):
                    continue
                wrong = survived(source, run_dir, seen, kind, whole)
                good[step].append(not wrong)
                print(f"{step}, {moment}, {kind}: {wrong or 'as if never struck'}", file=sys.stderr)
    results = [
        Result(name=f"same[{step}]", value=sum(v) / len(v), unit="", better="higher", target=1.0)
        for step, v in good.items()
    ]
    return show("sfm_faults", results, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
