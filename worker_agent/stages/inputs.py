"""What a job works on beside its videos: the logs of the vehicle, and how to read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from worker_agent.messages import FailureCode
from worker_agent.stages.api import AttemptSpec, StageFailure
from worker_agent.stages.navigation import NavError, NavLog, parse_log

__all__ = ["NavSettings", "logs_of", "read_log"]

OWN = ".nav.csv"  # ends the name of a log that belongs to one clip


@dataclass(frozen=True, slots=True)
class NavSettings:
    """`navigation` of the settings; a job that was ingested before there was such a thing has
    these."""

    offset_s: float = 0.0  # added to a log's times
    max_gap_s: float = 3.0
    camera_above_altimeter_m: float = 0.0

    @classmethod
    def of(cls, spec: AttemptSpec) -> NavSettings:
        return cls(**spec.config.get("navigation", {}))


def logs_of(spec: AttemptSpec) -> dict[str, str]:
    """Name of a clip -> name in `input/` of the log that belongs to it."""
    return {clip["name"]: clip["nav"] for clip in spec.inputs.get("clips", ()) if clip.get("nav")}


def read_log(path: Path) -> NavLog:
    """Raises StageFailure: INPUT_MISSING, CONFIG_INVALID with file and line."""
    try:
        log = parse_log(path.read_text(encoding="utf-8"), path.name)
        if log.clock == "utc" or path.name.endswith(OWN):
            return log
        why = f"{path.name}:1: t_s counts from one clip's start; such a log is <clip>{OWN}"
    except FileNotFoundError:
        raise StageFailure(
            FailureCode.INPUT_MISSING,
            f"the navigation log {path.name} is not on this host",
            advice="Retry the job, so that its inputs are sent again.",
        ) from None
    except UnicodeDecodeError:
        why = f"{path.name}:1: this is no text in UTF-8"
    except NavError as error:
        why = str(error)
    raise StageFailure(
        FailureCode.CONFIG_INVALID,
        why,
        advice="Correct the navigation log where it was ingested from, then retry the job.",
    )
