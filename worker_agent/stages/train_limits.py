"""What this host has for a training: memory on its GPU for so many gaussians, weights of LPIPS."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from worker_agent.messages import FailureCode
from worker_agent.stages.api import AttemptSpec, Reporter, StageFailure

if TYPE_CHECKING:
    from worker_agent.training.backend import Backend
    from worker_agent.training.lpips import Lpips
    from worker_agent.training.settings import TrainSettings


def within_memory(
    settings: TrainSettings, spec: AttemptSpec, free_mib: float, report: Reporter
) -> TrainSettings:
    """With the cap that `free_mib` of the GPU has room for, which is said where it is lower."""
    from worker_agent.training.gpu_memory import fitting

    cap = fitting(settings.cap, free_mib, spec.vram_mib)
    if cap < settings.cap:
        promised = f" of {spec.vram_mib} promised" if spec.vram_mib else ""
        report.warning(
            f"GPU {spec.gpu}: {free_mib:.0f} MiB free{promised}: trains at most {cap} gaussians "
            f"instead of {settings.cap} (end what else uses the GPU and retry, for all of them)"
        )
    return dataclasses.replace(settings, cap=cap)


def perceptual(settings: TrainSettings, backend: Backend) -> Lpips | None:
    """None where no weights are configured. Raises StageFailure: CONFIG_INVALID."""
    from worker_agent.training.lpips import Lpips, WeightsUnusable

    if not settings.lpips_weights:
        return None
    try:
        return Lpips(Path(settings.lpips_weights), backend.device)
    except WeightsUnusable as error:
        raise StageFailure(
            FailureCode.CONFIG_INVALID,
            f"train.lpips_weights: {error}",
            advice="put the file there on this host (docs/backends.md says how to make it), or "
            "take the setting out, and retry the job",
        ) from None
