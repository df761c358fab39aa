"""Masks of what moves, frame by frame, by a program of the operator's (`sfm.mask_command`);
docs/backends.md is its contract."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from worker_agent.stages.api import AttemptSpec, Reporter
from worker_agent.stages.external_program import failed, run_program
from worker_agent.stages.masks import PER_FRAME
from worker_agent.stages.train_command import arguments, fresh

__all__ = ["make_masks"]

TIMEOUT_S = 14_400.0  # for jobs without the setting
DONE = "made_of"  # beside the masks: what they were made of


def make_masks(spec: AttemptSpec, report: Reporter) -> None:
    """Run it, unless it has made the masks of these frames before.

    Raises StageFailure: CONFIG_INVALID, TOOL_MISSING, STAGE_TIMEOUT, STAGE_CRASHED.
    """
    command = list(spec.config["sfm"].get("mask_command") or ())
    if not command:
        return
    root = Path(spec.run_dir)
    listing = root / "frames" / "frames.json"
    digest = hashlib.sha256(json.dumps(command).encode() + listing.read_bytes()).hexdigest()
    masks = root / PER_FRAME
    done = masks / DONE
    if done.is_file() and done.read_text() == digest:
        return
    fresh(masks)
    places = {"frames": str(root / "frames"), "masks": str(masks)}
    argv = arguments(command, places, "sfm.mask_command")
    timeout_s = float(spec.config.get("reconstruct", {}).get("timeout_s", TIMEOUT_S))
    report.progress(0.0, "masks of the frames")
    ran = run_program(argv, masks, timeout_s, report)
    if ran.returncode != 0:
        advice = "See the attempt's log; docs/backends.md says what a program for masks must do."
        raise failed(ran, timeout_s, f"ended with exit {ran.returncode}", advice)
    done.write_text(digest)
