"""ManifestGeneration: every frame's record (`frame_records`) and a first camera model.

`sfm.camera_model` and `sfm.camera_params` describe the camera at the pixel size of the source
video, as calibrations do, and are scaled to the frames here. With "auto" the recording tells: a
calibration in `sfm.profiles`, else one in `lens_profiles`. Without, it is SIMPLE_RADIAL, which fits
GoPro's Linear mode and rectilinear lenses behind a flat port, and a focal length that is a guess.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worker_agent.messages import FailureCode
from worker_agent.stages.api import (
    Artifacts,
    AttemptSpec,
    Reporter,
    StageFailure,
    artifact,
    write_json,
)
from worker_agent.stages.frame_records import join
from worker_agent.stages.inputs import NavSettings
from worker_agent.stages.lens_profiles import choose, lens_of, own_profile_fits

__all__ = ["at_source_size", "camera_guess", "camera_of", "main"]

GUESSED_FOCAL = 0.9  # of the longer side: about 58 degrees, between Linear and narrow modes

# COLMAP camera model -> (number of focal lengths, number of parameters)
MODELS = {
    "SIMPLE_PINHOLE": (1, 3),
    "PINHOLE": (2, 4),
    "SIMPLE_RADIAL": (1, 4),
    "RADIAL": (1, 5),
    "OPENCV": (2, 8),
    "OPENCV_FISHEYE": (2, 8),
    "FULL_OPENCV": (2, 12),
    "SIMPLE_RADIAL_FISHEYE": (1, 4),
    "RADIAL_FISHEYE": (1, 5),
}


def main(spec: AttemptSpec, report: Reporter) -> Artifacts:
    """Join frames, metadata and validation into `output/manifest.json`.

    Raises StageFailure: INPUT_MISSING, CONFIG_INVALID (camera model or parameters).
    """
    run_dir = Path(spec.run_dir)
    frames = _load(run_dir / "frames" / "frames.json", "FrameExtraction")
    metadata = _load(run_dir / "output" / "metadata.json", "MetadataExtraction")
    validation = _load(run_dir / "output" / "validation.json", "Validation")
    config = spec.config["sfm"]
    source = (int(validation["clips"][0]["width"]), int(validation["clips"][0]["height"]))
    size = (int(frames["width"]), int(frames["height"]))
    camera, note = camera_of(config, metadata["clips"], source, size)
    if note and camera["source"] == "guess":
        report.warning(note)
    rows = join(frames["frames"], metadata["clips"], max_gap_s=NavSettings.of(spec).max_gap_s)
    target = run_dir / "output" / "manifest.json"
    write_json(
        target,
        {
            "segment": spec.inputs.get("segment", spec.job),
            "auv": spec.inputs.get("auv", ""),
            "clips": frames["clips"],
            "frames": rows,
            "camera": {**camera, "source_width": source[0], "source_height": source[1]},
        },
    )
    located = sum(row["position"] is not None for row in rows)
    report.progress(1.0, f"{len(rows)} frames, {located} with a position")
    return Artifacts(
        files=(artifact(run_dir, target, "manifest"),),
        metrics={
            "frames": len(rows),
            "frames_with_position": located,
            **{
                f"frames_with_{key.removesuffix('_m')}": sum(row[key] is not None for row in rows)
                for key in ("gravity", "orientation", "depth_m", "altitude_m")
            },
        },
        completed={"manifest_path": str(target)},
    )


def camera_of(
    config: Mapping[str, Any],
    clips: Sequence[Mapping[str, Any]],
    source: tuple[int, int],
    frame: tuple[int, int],
) -> tuple[dict[str, Any], str]:
    """(`camera` of the manifest, what an operator should know of it). `config`: the sfm settings,
    `clips`: those of `output/metadata.json`; sizes of the source video and of the frames.

    {"model", "width", "height", "params", "source", "prior_focal", "lens", "fallback"}: COLMAP's
    model and parameters at the frames' size; where they come from; whether they are more than a
    guess; what the recording says of its lens; for a lens of a profile the camera to begin with
    where that one fails. Raises StageFailure CONFIG_INVALID.
    """
    lens = lens_of(clips, config.get("lens_mode"))
    model, params = str(config["camera_model"]), config["camera_params"]
    camera = camera_guess(model, params, source, frame) | {"lens": lens.to_dict()}
    if model != "auto" or params is not None:
        return camera | {"fallback": None}, ""
    underwater = bool(config.get("underwater", True))
    for own in config.get("profiles", ()):
        if own_profile_fits(own, lens, source, underwater=underwater):
            given = camera_guess(own["camera_model"], own["camera_params"], source, frame)
            note = f"{lens.camera}: the lens of a calibration in the settings"
            return camera | given | {"source": "calibration", "fallback": camera}, note
    profile, note = choose(lens, source, underwater=underwater)
    if profile is None:
        return camera | {"fallback": None}, note
    params = profile.params(*source)
    given = camera_guess(profile.model, params, source, frame)
    return camera | given | {"source": f"profile {profile.name}", "fallback": camera}, note


def camera_guess(
    model: str,
    params: Sequence[float] | str | None,
    source: tuple[int, int],
    frame: tuple[int, int],
) -> dict[str, Any]:
    """{"model", "width", "height", "params", "source", "prior_focal"} of `camera_of`.

    `params` are given at the size of the source video, in COLMAP's order, as numbers or as one
    comma separated string. Raises StageFailure CONFIG_INVALID.
    """
    name = "SIMPLE_RADIAL" if model == "auto" else model
    if name not in MODELS:
        raise _invalid(f"sfm.camera_model is {model!r}; known: auto, {', '.join(MODELS)}")
    focals, count = MODELS[name]
    width, height = frame
    if params is None:
        values = [GUESSED_FOCAL * max(frame)] * focals + [width / 2, height / 2]
        values += [0.0] * (count - len(values))
        origin = "guess"
    else:
        if model == "auto":
            raise _invalid("sfm.camera_params are given but sfm.camera_model is auto")
        given = _numbers(params)
        if len(given) != count:
            raise _invalid(f"sfm.camera_params holds {len(given)} numbers; {name} takes {count}")
        values = _scaled(name, given, width / source[0], height / source[1])
        if values[0] <= 0:
            raise _invalid("the focal length in sfm.camera_params is not positive")
        origin = "config"
    return {
        "model": name,
        "width": width,
        "height": height,
        "params": values,
        "source": origin,
        "prior_focal": origin == "config",
    }


def at_source_size(model: str, params: Sequence[float], camera: Mapping[str, Any]) -> list[float]:
    """Parameters of the frames' camera at the size of the source video, as `sfm.camera_params`
    takes them. `camera` is the manifest's. Raises KeyError for a model not in MODELS."""
    sx, sy = (camera[f"source_{side}"] / camera[side] for side in ("width", "height"))
    return _scaled(model, params, sx, sy)


def _scaled(model: str, params: Sequence[float], sx: float, sy: float) -> list[float]:
    """For a picture sx and sy times as large: focal lengths and centre grow, distortion stays."""
    focals, count = MODELS[model]
    scales = ([sx] if focals == 1 else [sx, sy]) + [sx, sy]
    scales += [1.0] * (count - len(scales))
    return [value * scale for value, scale in zip(params, scales, strict=True)]


def _numbers(params: Sequence[float] | str) -> list[float]:
    parts = params.split(",") if isinstance(params, str) else params
    try:
        values = [float(part) for part in parts]
    except (TypeError, ValueError):
        raise _invalid(f"sfm.camera_params is {params!r}, not a list of numbers") from None
    if not all(math.isfinite(value) for value in values):
        raise _invalid(f"sfm.camera_params is {params!r}: a number is not finite")
    return values


def _invalid(message: str) -> StageFailure:
    return StageFailure(
        FailureCode.CONFIG_INVALID,
        message,
        advice="Correct the sfm settings of the acquisition, then retry the job.",
    )


def _load(path: Path, stage: str) -> Any:
    if not path.is_file():
        raise StageFailure(
            FailureCode.INPUT_MISSING,
            f"{path.parent.name}/{path.name} is missing on this host",
            advice=f"Run the job again from {stage}.",
        )
    return json.loads(path.read_text())
