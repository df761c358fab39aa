"""A rehearsed stage whose training takes memory from a simulated GPU, and is refused as a real
one refuses: `python -m tests.simulated_gpu.stage <attempt>/started.json`."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

from tests.simulated_gpu.driver import SimulatedGpus
from worker_agent import rehearse
from worker_agent.protocol import AttemptSpec, FailureCode
from worker_agent.stages import rehearsal
from worker_agent.stages.api import Artifacts, Reporter, StageFailure

DIRECTORY = "gpus"  # beside the host's work directory
CAP = 1_000_000  # gaussians of the default plan
_SHARES = (0.3, 0.7, 1.0)  # a training grows
_GROWS_S = 0.1


def main() -> int:
    played = rehearsal.main

    def with_memory(spec: AttemptSpec, report: Reporter) -> Artifacts:
        # What decodes has a GPU, too, and none of its memory.
        if spec.stage != "Training" or spec.gpu is None or spec.gpu_kind != "cuda":
            return played(spec, report)
        if not spec.vram_mib:
            raise StageFailure(FailureCode.CONFIG_INVALID, "the stage is not told its promise")
        gpus = SimulatedGpus(Path(spec.run_dir).parents[2] / DIRECTORY)
        for share in _SHARES:
            mib = int(share * _wanted_mib(spec))
            if not gpus.take(spec.gpu, mib, f"{spec.job}#{spec.attempt}"):
                raise StageFailure(
                    FailureCode.GPU_OUT_OF_MEMORY, f"{spec.stage}: {spec.gpu} refuses {mib} MiB"
                )
            time.sleep(_GROWS_S)
        made = played(spec, report)
        gpus.take(spec.gpu, 0, f"{spec.job}#{spec.attempt}")
        return made

    rehearsal.main = with_memory
    return rehearse.main(sys.argv[1:])


def _wanted_mib(spec: AttemptSpec) -> float:
    """Of a training by its plan, so that a smaller plan takes less."""
    plan = spec.config["train"]["cuda"]
    size = 2_500 + hashlib.sha256(spec.job.encode()).digest()[0] * 10
    return size * plan["cap"] / CAP * plan["width"] / 960


if __name__ == "__main__":
    sys.exit(main())
