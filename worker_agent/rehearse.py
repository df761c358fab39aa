"""Runs a stage as `worker_agent.stages` does, with its rehearsal in the place of the real work,
and writes down that it lived: `python -m worker_agent.rehearse <attempt>/started.json`.

COSMA_RUN_LOG names the log: one JSON line at the start, one every 0.1 s of life, one at the end.
Times are seconds of CLOCK_BOOTTIME, which no change of the wall clock moves.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from worker_agent import clock
from worker_agent.messages import AttemptSpec
from worker_agent.stages import __main__ as runner
from worker_agent.stages import registry

RUN_LOG = "COSMA_RUN_LOG"
_PULSE_S = 0.1


class RunLog:
    """One write per line on an append-only file, so that processes cannot mix their lines."""

    def __init__(self, path: Path, spec: AttemptSpec) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        self._who = {
            "job": spec.job,
            "attempt": spec.attempt,
            "stage": spec.stage,
            "pid": os.getpid(),
            "boot_id": clock.boot_id(),
        }

    def write(self, kind: str, **more: Any) -> None:
        line = {"kind": kind, "at": round(clock.boottime(), 4), **self._who, **more}
        os.write(self._descriptor, json.dumps(line).encode() + b"\n")

    def pulse(self) -> None:
        """Until the process ends."""
        while True:
            time.sleep(_PULSE_S)
            self.write("alive")


def main(arguments: list[str]) -> int:
    """`arguments`: the path of started.json."""
    spec = AttemptSpec.from_dict(json.loads(Path(arguments[0]).read_bytes())["spec"])
    log = RunLog(Path(os.environ[RUN_LOG]), spec)
    log.write("start")
    threading.Thread(target=log.pulse, daemon=True).start()
    registry.STAGES = {name: registry.StageEntry("rehearsal") for name in registry.STAGES}
    code = runner.main(arguments)
    log.write("end", code=code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
