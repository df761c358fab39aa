"""Training by a program of the operator's (`reconstruct.backend: command`); docs/backends.md is
its contract.

The program gets frames and the SfM model and leaves a PLY; what it made is measured like our own.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from worker_agent.messages import FailureCode
from worker_agent.stages.api import AttemptSpec, Reporter, StageFailure, write_json
from worker_agent.stages.external_program import failed, run_program

__all__ = ["arguments", "by_command"]

PLACES = ("frames", "model", "output", "work", "job", "gpu")


def arguments(
    command: Sequence[str], places: Mapping[str, str], key: str = "reconstruct.command"
) -> list[str]:
    """The program's argv: each {name} of `places` filled in, nothing else touched.

    Raises StageFailure CONFIG_INVALID for an unknown {name}; `key` is where the words stand.
    """
    filled = []
    for given in command:
        word, rest = given, given
        for name, value in places.items():
            word = word.replace(f"{{{name}}}", value)
            rest = rest.replace(f"{{{name}}}", "")
        if "{" in rest or "}" in rest:
            known = ", ".join(f"{{{name}}}" for name in places)
            raise StageFailure(
                FailureCode.CONFIG_INVALID,
                f"{key} holds {given!r}; known are {known}",
                advice=f"Correct {key} of the acquisition, then retry the job.",
            )
        filled.append(word)
    return filled


def by_command(spec: AttemptSpec, report: Reporter, held_out: Sequence[str]) -> Path:
    """Run it to its end and return the PLY it left. `held_out`: names of the frames it is asked
    not to train on, as the result is measured on them.

    Raises StageFailure: CONFIG_INVALID, TOOL_MISSING, STAGE_TIMEOUT, GPU_OUT_OF_MEMORY,
    STAGE_CRASHED (it ended badly, or left nothing).
    """
    root = Path(spec.run_dir)
    config = spec.config["reconstruct"]
    work = fresh(root / "train" / "command")
    output = work / "output.ply"
    gpu = spec.gpu if spec.gpu_kind == "cuda" else ""
    values = (
        root / "frames", root / "sfm" / "model", output, work, work / "job.json", gpu or "",
    )  # fmt: skip
    places = {name: str(value) for name, value in zip(PLACES, values, strict=True)}
    train = spec.config.get("train", {})
    write_json(
        work / "job.json",
        {**places, "name": spec.job, "held_out": list(held_out), "train": train},
    )
    timeout_s = float(config["timeout_s"])
    ran = run_program(arguments(config["command"], places), work, timeout_s, report)
    if ran.returncode != 0 or not output.is_file() or output.stat().st_size == 0:
        how = f"ended with exit {ran.returncode}" if ran.returncode else f"left no {output.name}"
        advice = "See the attempt's log; docs/backends.md says what a program must do."
        raise failed(ran, timeout_s, how, advice)
    return output


def fresh(work: Path) -> Path:
    """An empty directory; what an earlier attempt left in it is gone."""
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    return work
