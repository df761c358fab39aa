"""Runs one stage in its own process: `python -m worker_agent.stages <attempt>/started.json`.

Skips it when the checkpoint proves it done, else runs its module, and says what came of it in
result.json. Exit code 0 when ok, 1 when the stage failed; tracebacks go to the log only.
"""

from __future__ import annotations

import faulthandler
import importlib
import io
import json
import os
import resource
import sys
import time
import zlib  # noqa: F401 - before pycolmap, whose wheel exports a zlib of its own that aborts
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from worker_agent.attempts import AttemptFiles
from worker_agent.checkpoint import Checkpoint, previous_hash, stage_hash
from worker_agent.messages import AttemptSpec, FailureCode, StageOutcome
from worker_agent.refusal import is_disk_full
from worker_agent.stages import registry
from worker_agent.stages.api import Artifacts, Reporter, StageFailure, write_json
from worker_agent.stages.failures import outcome_of
from worker_agent.stages.lease_guard import guard

_SELF = resource.RUSAGE_SELF


def run(spec: AttemptSpec, report: Reporter) -> StageOutcome:
    """One stage, or its stored outcome when the checkpoint still verifies. Raises nothing but
    what ends the process (KeyboardInterrupt, SystemExit)."""
    try:
        return _run(spec, report)
    except Exception as error:
        if not isinstance(error, StageFailure):
            import traceback  # here, as a stage that ends well need not wait for it

            traceback.print_exc()
        return outcome_of(error, spec.stage)


def _run(spec: AttemptSpec, report: Reporter) -> StageOutcome:
    entry = registry.STAGES.get(spec.stage)
    if entry is None:
        raise StageFailure(
            FailureCode.CONFIG_INVALID,
            f"there is no stage {spec.stage!r} in this agent",
            advice="push the agent of the dispatcher's version",
        )
    run_dir = Path(spec.run_dir)
    checkpoint = Checkpoint.load(run_dir, spec.job)
    digest = stage_hash(
        spec.stage,
        spec.config,
        entry.config,
        registry.declared_inputs(spec, run_dir),
        previous_hash(checkpoint, spec.stage, registry.ORDER),
        registry.tool_versions(entry),
    )
    if not spec.config.get("fresh", False):
        resumed = checkpoint.resume(spec.stage, digest, time.time())
        if resumed is not None:
            report.emit("resumed", stage=spec.stage)
            return resumed
    module = importlib.import_module(f"worker_agent.stages.{entry.module}")
    made: Artifacts = module.main(spec, report)
    checkpoint.record(spec, digest, made, time.time())
    return StageOutcome(ok=True, artifacts=made.files, metrics=made.metrics)


def _reporter(files: AttemptFiles) -> Reporter:
    inherited = os.environ.get("COSMA_EVENTS_FD")
    if inherited is not None:
        descriptor = int(inherited)
    else:
        descriptor = os.open(files.events, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    return Reporter(descriptor, files.attempt, reserve=files.reserve("events"))


class _Log(io.TextIOWrapper):
    """stdout and stderr, the attempt's log: what has no room on a full disk is left out, so that
    a message nobody needs does not undo what the stage has done."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            if not is_disk_full(error):
                raise
            return len(text)


def _log(descriptor: int) -> _Log:
    raw = io.FileIO(descriptor, "w", closefd=False)
    return _Log(raw, errors="backslashreplace", write_through=True)


def _write_outcome(files: AttemptFiles, outcome: StageOutcome) -> None:
    """With what the stage used, for when its supervisor is not there to measure it. One that is
    too long for the reserve of a full disk goes without its evidence and metrics. Of this boot: the
    supervisor's record, which has it all, is what outlives a power cut."""
    own, children = (resource.getrusage(who) for who in (_SELF, resource.RUSAGE_CHILDREN))
    usage = {
        "cpu_s": round(own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime, 3),
        "peak_rss_mib": round(max(own.ru_maxrss, children.ru_maxrss) / 1024, 1),
    }
    try:
        _keep(files, outcome, usage)
    except OSError as error:
        if not is_disk_full(error):
            raise
        _keep(files, replace(outcome, evidence={}, metrics={}), usage)


def _keep(files: AttemptFiles, outcome: StageOutcome, usage: dict[str, float]) -> None:
    value = {**json.loads(outcome.to_json()), "usage": usage}
    write_json(files.result, value, reserve=files.reserve("result"), this_boot=True)


def main(arguments: list[str]) -> int:
    """`arguments`: the path of started.json."""
    if len(arguments) != 1:
        print("usage: python -m worker_agent.stages ATTEMPT/started.json", file=sys.stderr)
        return 2
    faulthandler.enable()  # a segmentation fault in native code leaves its stack in the log
    spec = AttemptSpec.from_dict(json.loads(Path(arguments[0]).read_bytes())["spec"])
    files = AttemptFiles.of(spec.run_dir, spec.attempt)
    guard(files, spec)
    sys.stdout, sys.stderr = _log(1), _log(2)
    outcome = run(spec, _reporter(files))
    try:
        _write_outcome(files, outcome)
    except OSError as error:
        print(f"{files.result}: {error.strerror}: the outcome is lost", file=sys.stderr)
        return 1
    if not outcome.ok:
        print(f"{spec.stage}: {outcome.reason}: {outcome.message}", file=sys.stderr)
    return 0 if outcome.ok else 1


def end(code: int) -> NoReturn:
    """What is to be kept is on the disk: tearing down an interpreter that has torch in it would
    only keep the GPU from the next stage."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    end(main(sys.argv[1:]))
