"""Reconstruction by lingbot-map (`reconstruct.backend: lingbot-map`), a feed-forward program.

Its demo.py (github.com/robbyant/lingbot-map) reads a folder of images and keeps all of them, and
all that it says of them, in RAM until the end: of a long segment only every n-th frame is given to
it. It then shows the points in a viewer that runs until it is ended. No camera poses are needed and
none come out: the result is a cloud in a frame of its own.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker_agent.allowance import memory_mib
from worker_agent.messages import FailureCode
from worker_agent.stages.api import AttemptSpec, Reporter, StageFailure
from worker_agent.stages.external_program import failed, run_program
from worker_agent.stages.point_cloud import is_whole
from worker_agent.stages.train_command import arguments, fresh

__all__ = ["by_lingbot", "command_line", "stride_for"]

MIN_FRAMES = 8  # the program sets its scale by the first eight
_USED_SHARE = 0.8  # of the free RAM


def stride_for(frames: int, free_mib: int, base_mib: float, frame_mib: float, least: int) -> int:
    """The smallest n, from `least` on, so that every n-th frame fits into the free RAM beside what
    the program needs without frames. Raises StageFailure OUT_OF_MEMORY when none does."""
    room = math.floor((_USED_SHARE * free_mib - base_mib) / frame_mib)
    needed = min(MIN_FRAMES, frames)
    if room < needed:
        raise StageFailure(
            FailureCode.OUT_OF_MEMORY,
            f"lingbot-map needs {base_mib + needed * frame_mib:.0f} MiB of RAM for {needed} "
            f"frames; {_USED_SHARE * free_mib:.0f} of the {free_mib} MiB free may be used",
            advice="Use a host with more RAM, or see reconstruct.lingbot.base_mib and frame_mib.",
        )
    return max(least, math.ceil(frames / room))


def command_line(
    lingbot: Mapping[str, Any], places: Mapping[str, str], stride: int, port: int, viewer: Path
) -> list[str]:
    """argv of the program. Where an option names {output} the program writes its PLY itself, else
    `viewer` (lingbot_viewer.py) does in the place of the program's own."""
    options = arguments(lingbot["options"], places, "reconstruct.lingbot.options")
    writes = any("{output}" in option for option in lingbot["options"])
    program = [lingbot["demo"]] if writes else [str(viewer), lingbot["demo"], places["output"]]
    return [
        lingbot["python"], *program,
        "--image_folder", places["frames"],
        "--model_path", lingbot["model"],
        "--mode", "windowed",
        "--window_size", str(lingbot["window"]),
        "--stride", str(stride),
        "--port", str(port),
        *options,
    ]  # fmt: skip


def by_lingbot(spec: AttemptSpec, report: Reporter) -> Path:
    """Run it until its PLY is whole and return that; its viewer is ended with it.

    Raises StageFailure: CONFIG_INVALID, TOOL_MISSING, OUT_OF_MEMORY, STAGE_TIMEOUT,
    GPU_OUT_OF_MEMORY, STAGE_CRASHED (it ended without a PLY).
    """
    root, config = Path(spec.run_dir), spec.config["reconstruct"]
    lingbot = config["lingbot"]
    for key in ("demo", "model"):
        if not Path(lingbot[key]).is_file():
            raise StageFailure(
                FailureCode.TOOL_MISSING,
                f"{lingbot[key]} of reconstruct.lingbot.{key} is not on this host",
                advice="Install lingbot-map and its checkpoint there, or correct the path.",
            )
    frames = len(list((root / "frames").glob("*.jpg")))
    least = int(spec.config.get("train", {}).get("frame_stride", 1))
    free = memory_mib()[1]
    stride = stride_for(
        frames, free, float(lingbot["base_mib"]), float(lingbot["frame_mib"]), least
    )
    if stride > 1:
        report.warning(
            f"lingbot-map gets one of every {stride} of {frames} frames: {free} MiB of RAM are free"
        )
    work = fresh(root / "train" / "lingbot")
    output, viewer = work / "output.ply", work / "viewer.py"
    viewer.write_bytes(_source())
    places = {"frames": str(root / "frames"), "output": str(output), "work": str(work)}
    argv = command_line(lingbot, places, stride, _free_port(), viewer)
    timeout_s = float(config["timeout_s"])
    size = -1

    def written() -> bool:
        """Whole, and no longer growing: a header may be written before its points."""
        nonlocal size
        before, size = size, output.stat().st_size if output.is_file() else -1
        return size > 0 and size == before and is_whole(output)

    ran = run_program(argv, work, timeout_s, report, written)
    if not (output.is_file() and is_whole(output)):
        how = f"ended with exit {ran.returncode} and left no whole {output.name}"
        advice = "See the attempt's log, and docs/backends.md for how it is started."
        raise failed(ran, timeout_s, how, advice)
    return output


def _source() -> bytes:
    """Of lingbot_viewer.py: the agent may be one zip file, which another Python cannot run."""
    from importlib.resources import files

    return files("worker_agent.stages").joinpath("lingbot_viewer.py").read_bytes()


def _free_port() -> int:
    """For its viewer: two of them on one host must not meet."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
