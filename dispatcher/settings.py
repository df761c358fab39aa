"""Settings: what the pipeline does to a job, and how the dispatcher runs. Defaults stand here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from dispatcher.errors import SettingsError
from dispatcher.reclaim_policy import DEFAULTS, Kept, ReclaimRules
from dispatcher.stage_settings import (
    DepthConfig,
    FramesConfig,
    Frozen,
    MeshConfig,
    NavigationConfig,
    ReconstructConfig,
    SfmConfig,
    TrainConfig,
    VerdictConfig,
)


class StitchConfig(Frozen):
    ratio: float = Field(default=0.85, gt=0, le=1)
    min_inliers: int = Field(default=12, ge=3)
    min_inlier_share: float = Field(default=0.2, ge=0, le=1)
    min_hull_share: float = Field(default=0.1, ge=0, le=1)
    prune_floaters: bool = True
    harmonise: bool = False  # one colour of the water and one exposure for all members
    aspects: bool = True  # colours by where ground that several saw is seen from
    segment_ids: bool = False  # a column of the PLY: from which member each gaussian comes
    orthomosaic: bool = True
    tiles: bool = False
    # A first version of an AUV's stitch before all its segments are terminal: once this share of
    # them is done, or so long after the last one was ingested. Late ones come into the next.
    quorum: float | None = Field(default=None, gt=0, le=1)
    deadline_h: float | None = Field(default=None, ge=0)


class ReclaimConfig(ReclaimRules):
    """Until when files stay on a host; the inventory may say otherwise of a host."""

    source_videos: Kept = DEFAULTS.source_videos
    frames: Kept = DEFAULTS.frames
    features: Kept = DEFAULTS.features
    training: Kept = DEFAULTS.training
    results: Kept = DEFAULTS.results
    fstrim: Literal["auto", "off", "sudo"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _yaml_reads_off_as_false(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("fstrim") is False:
            return {**data, "fstrim": "off"}
        return data


class PipelineConfig(Frozen):
    """What `AttemptSpec.config` carries to every stage of a job."""

    frames: FramesConfig = FramesConfig()
    navigation: NavigationConfig = NavigationConfig()
    sfm: SfmConfig = SfmConfig()
    depth: DepthConfig = DepthConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    verdict: VerdictConfig = VerdictConfig()
    reconstruct: ReconstructConfig = ReconstructConfig()
    stitch: StitchConfig = StitchConfig()
    reclaim: ReclaimConfig = ReclaimConfig()

    @classmethod
    def load(cls, path: Path | None = None, environment: Mapping[str, str] | None = None) -> Self:
        """Defaults < YAML file < COSMA_QC_FPS, COSMA_QC_IMG_W and COSMA_QC_IMG_H.

        A size given by only one of COSMA_QC_IMG_W and COSMA_QC_IMG_H keeps the video's shape.
        Raises SettingsError, one line that names file or variable, key and value.
        """
        data = _read_yaml(path) if path else {}
        config = _checked(cls, data, str(path))
        env = os.environ if environment is None else environment
        frames: dict[str, Any] = config.frames.model_dump()
        sizes = {k: env[v] for k, v in _ENV_SIZE.items() if env.get(v)}
        if sizes:
            frames.update({"width": None, "height": None, **sizes})
        if env.get("COSMA_QC_FPS"):
            frames["fps"] = env["COSMA_QC_FPS"]
        where = "COSMA_QC_FPS, COSMA_QC_IMG_W or COSMA_QC_IMG_H"
        return config.model_copy(update={"frames": _checked(FramesConfig, frames, where)})

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return self.model_dump(mode="json")


_ENV_SIZE = {"width": "COSMA_QC_IMG_W", "height": "COSMA_QC_IMG_H"}


class DispatcherSettings(Frozen):
    """How the dispatcher runs. Durations in seconds."""

    database: Path = Path("cosma.db")
    artifacts: Path = Path("cosma-artifacts")
    artifacts_url: str | None = Field(default=None, pattern=r"^s3://[^/]+")  # results go there, too
    error_area: Path = Path("cosma-errors")  # for inputs that are set aside
    retention_days: float = Field(default=30.0, ge=0)  # that what nobody refers to is kept
    gc_hours: float = Field(default=0.0, ge=0)  # between two collections of it; 0: none
    poll_s: float = Field(default=2.0, gt=0, le=3600)  # between two looks at the queue
    probe_s: float = Field(default=10.0, gt=0, le=3600)  # between two probes of a host
    probe_timeout_s: float = Field(default=30.0, gt=0, le=3600)
    # Times the stages' leases (core/lease.py). Shorter frees the work of a lost host sooner, longer
    # outlasts a longer outage of the link; below 0.04 a renewal could come too late.
    lease_scale: float = Field(default=1.0, ge=0.04, le=100)
    # After something was removed on a host: what else goes within this time is trimmed with it.
    trim_window_s: float = Field(default=15.0, ge=0, le=86_400)

    @classmethod
    def load(cls, environment: Mapping[str, str] | None = None, **overrides: Any) -> Self:
        """Defaults < environment (COSMA_QC_DB, OUTPUT_PATH, COSMA_QC_POLL_S, COSMA_PROBE_S,
        COSMA_LEASE_SCALE, COSMA_TRIM_WINDOW_S) < `overrides` that are not None.

        Artifacts get an absolute path, as the database keeps it. Raises SettingsError.
        """
        env = os.environ if environment is None else environment
        names = {
            "database": "COSMA_QC_DB",
            "artifacts": "OUTPUT_PATH",
            "artifacts_url": "COSMA_ARTIFACTS_URL",
            "error_area": "COSMA_ERROR_AREA",
            "retention_days": "CLEANUP_RETENTION_DAYS",
            "gc_hours": "COSMA_GC_HOURS",
            "poll_s": "COSMA_QC_POLL_S",
            "probe_s": "COSMA_PROBE_S",
            "lease_scale": "COSMA_LEASE_SCALE",
            "trim_window_s": "COSMA_TRIM_WINDOW_S",
        }
        data: dict[str, Any] = {k: env[v] for k, v in names.items() if env.get(v)}
        data.update({k: v for k, v in overrides.items() if v is not None})
        settings = _checked(cls, data, names)
        paths = {
            "database": settings.database.expanduser(),
            "artifacts": settings.artifacts.expanduser().absolute(),
            "error_area": settings.error_area.expanduser().absolute(),
        }
        return settings.model_copy(update=paths)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            "cannot read the configuration", where=str(path),
            why=getattr(error, "strerror", None) or str(error),
        ) from None  # fmt: skip
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise SettingsError(
            "not valid YAML", where=f"{path}:{mark.line + 1}" if mark else str(path),
            why=getattr(error, "problem", None) or str(error),
            fix="Check the indentation and the quotes on this line",
        ) from None  # fmt: skip
    if data is not None and not isinstance(data, dict):
        raise SettingsError("expected `key: value` lines", where=str(path))
    return data or {}


M = TypeVar("M", bound=BaseModel)


def _checked(model: type[M], data: Any, source: str | Mapping[str, str]) -> M:
    """`source`: the file, or by key the variable that it comes from."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    where = source if isinstance(source, str) else source.get(key, "")
    if first["type"] == "extra_forbidden":
        raise SettingsError(key, where=where, why="unknown key", fix="Remove it or correct it")
    why = f"{first['msg'].removeprefix('Value error, ')}, got {first['input']!r}"
    raise SettingsError(key, where=where, why=why, fix="Correct this value")
