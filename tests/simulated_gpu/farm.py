"""Hosts of a rehearsal with simulated GPUs: their agents load the driver, their stages use it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from tests.conftest import REPOSITORY
from tests.rehearsal import Rehearsal
from tests.simulated_gpu.driver import SimulatedGpus
from tests.simulated_gpu.stage import DIRECTORY

STAGE_PYTHON = """\
#!/bin/sh
export COSMA_RUN_LOG={log} COSMA_REHEARSAL_PACE={pace}
case "$1 $2" in
"-m worker_agent.stages")
    shift 2; PYTHONPATH=$PYTHONPATH:{repository} exec {python} -m tests.simulated_gpu.stage "$@" ;;
esac
exec {python} "$@"
"""
AGENT_PYTHON = """\
#!/bin/sh
export COSMA_NVML_LIBRARY={library}
exec {python} "$@"
"""


def simulate(farm: Rehearsal, gpus: Mapping[str, Sequence[str]]) -> list[SimulatedGpus]:
    """`gpus`: host -> lines of its ledger, as nvml.c explains them. In the order of the hosts."""
    made = []
    inventory = yaml.safe_load(farm.hosts.inventory.read_text())
    stage_python = _script(
        farm.hosts.base / "stage-python",
        STAGE_PYTHON.format(
            log=farm.log, pace=farm.pace, python=sys.executable, repository=REPOSITORY
        ),
    )
    inventory["defaults"]["stage_python"] = str(stage_python)
    for host, entry in zip(farm.hosts.hosts, inventory["hosts"], strict=True):
        folder = host.work_dir.parent
        driver = SimulatedGpus(folder / DIRECTORY).build(*gpus[host.name])
        made.append(driver)
        text = AGENT_PYTHON.format(library=driver.library, python=sys.executable)
        entry["python"] = str(_script(folder / "agent-python", text))
    farm.hosts.inventory.write_text(yaml.safe_dump(inventory, sort_keys=False))
    return made


def _script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path
