"""A rehearsed stage whose training holds memory of a real GPU until it is let go:
`python -m tests.gpu.cuda_stage <attempt>/started.json`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from worker_agent import rehearse
from worker_agent.protocol import AttemptSpec
from worker_agent.stages import rehearsal
from worker_agent.stages.api import Artifacts, Reporter

HOLDS_MIB = 2_048
GO = "go"  # beside the host's work directory
HOLDING = "holding-"  # + job, likewise


def main() -> int:
    played = rehearsal.main

    def with_memory(spec: AttemptSpec, report: Reporter) -> Artifacts:
        if spec.gpu is None or spec.stage != "Training":
            return played(spec, report)
        import torch

        held = torch.ones(HOLDS_MIB << 20, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        beside = Path(spec.run_dir).parents[2]
        (beside / f"{HOLDING}{spec.job}").touch()
        while not (beside / GO).exists():
            time.sleep(0.02)
        del held
        return played(spec, report)

    rehearsal.main = with_memory
    return rehearse.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
