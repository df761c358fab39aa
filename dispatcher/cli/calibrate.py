"""`cosma calibrate`: the camera of a finished segment as settings for the next ones."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from dispatcher.cli import options
from dispatcher.cli.render import print_json
from dispatcher.cli.stored import known_job, with_store
from dispatcher.errors import CosmaError, UsageError
from dispatcher.settings import PipelineConfig
from dispatcher.store.base import Store

MIN_SHARE = 0.9  # of the frames registered: a camera that half of them agree on is no calibration
MAX_ERROR_PX = 1.5
MAX_FOCAL_UNCERTAINTY = 0.005  # a camera that hardly turned: another segment's would differ


def calibrate(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A segment that is done.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Write the profile here, not to stdout; beside those in the file."
        ),
    ] = None,
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """Print the lens that a segment's frames agree on, as settings for `cosma ingest --config`:
    they count for footage that says it is of the same camera, lens mode and size."""

    async def work(store: Store) -> tuple[dict[str, Any], dict[str, Any]]:
        found = await known_job(store, job)
        rows = await store.artifacts(job=found.id)
        paths = {row.kind: row.local_path for row in rows if row.local_path}
        if "sfm_report" not in paths:
            raise UsageError(
                "no calibration", where=job, why="its SfM report is not here",
                fix="wait until it is done, and name a segment, not a stitch",
            )  # fmt: skip
        run = await store.run(found.id)
        asked = {} if run is None else run.config.get("sfm", {})
        manifest = paths.get("manifest")
        lens = _read(Path(manifest)).get("camera", {}).get("lens") if manifest else None
        told = {**(lens or {}), "underwater": bool(asked.get("underwater", True))}
        return _report(Path(paths["sfm_report"] or "")), told

    report, lens = with_store(db, work)
    _refuse_uncertain(job, report)
    sfm = _settings(report, lens)
    if json:
        print_json({"sfm": sfm, "width": report["camera"]["width"],
                    "height": report["camera"]["height"]})  # fmt: skip
        return
    of = f"{report['registered']} of {report['frames']} frames, {report['reprojection_px']:.2f} px"
    if out is None or "profiles" not in sfm:
        _write(out, f"# From {job}: {of}.\n{_yaml({'sfm': sfm})}")
        return
    text = f"# Written by cosma calibrate; the newest from {job}: {of}.\n"
    _write(out, text + _yaml(_beside(out, sfm["profiles"][0])))


def _settings(report: dict[str, Any], lens: dict[str, Any]) -> dict[str, Any]:
    """For recordings of this kind only, where the camera says what it is; else for all."""
    found = report["camera"]
    camera = {
        "camera_model": found["model"],
        "camera_params": [round(float(value), 6) for value in found["params"]],
    }
    if lens.get("camera") is None:
        return camera
    size = {"width": found["width"], "height": found["height"]}
    told = {key: lens[key] for key in ("camera", "mode", "underwater", "stabilised")}
    return {"profiles": [{**told, **size, **camera}]}


def _beside(out: Path, profile: dict[str, Any]) -> dict[str, Any]:
    """The settings of the file with this profile in place of one for the same recordings."""
    settings = (
        PipelineConfig.load(out, {}) if out.is_file() else None
    )  # refuses what is no such file
    data = yaml.safe_load(out.read_text()) if settings else {}
    there = (data.get("sfm") or {}).get("profiles", [])
    same = [key for key in profile if not key.startswith("camera_")]
    kept = [one for one in there if any(one.get(key) != profile[key] for key in same)]
    return {**data, "sfm": {**(data.get("sfm") or {}), "profiles": [*kept, profile]}}


def _yaml(data: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=100)
    return text


def _write(out: Path | None, text: str) -> None:
    if out is None:
        print(text, end="")
        return
    try:
        out.write_text(text)
    except OSError as failure:
        raise CosmaError("cannot write", where=str(out), why=str(failure.strerror)) from None


def _refuse_uncertain(job: str, report: dict[str, Any]) -> None:
    share, error = float(report["registered_share"]), float(report["reprojection_px"])
    if share < MIN_SHARE or error > MAX_ERROR_PX:
        raise CosmaError(
            "no calibration",
            where=job,
            why=f"{100 * share:.0f} % of its frames registered, to {error:.2f} px; "
            f"{100 * MIN_SHARE:.0f} % and {MAX_ERROR_PX:g} px are needed",
            fix="Take a segment with more of the scene in sight",
        )
    uncertain = report.get("focal_uncertainty", 0.0)
    if uncertain is None or float(uncertain) > MAX_FOCAL_UNCERTAINTY:
        told = "not at all" if uncertain is None else f"to {100 * float(uncertain):.1f} %"
        raise CosmaError(
            "no calibration",
            where=job,
            why=f"its frames tell the focal length {told}; "
            f"{100 * MAX_FOCAL_UNCERTAINTY:g} % are needed",
            fix="Take a segment where the camera turns, or its height changes",
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        report = jsonlib.loads(path.read_text())
    except (OSError, ValueError) as failure:
        raise CosmaError(
            "a result cannot be read", where=str(path), why=str(failure),
            fix="cosma fsck --fix collects it again",
        ) from None  # fmt: skip
    return report if isinstance(report, dict) else {}


def _report(path: Path) -> dict[str, Any]:
    report = _read(path)
    if "camera" not in report:
        raise CosmaError(
            "no calibration", where=str(path), why="the report is of an agent that kept no camera",
            fix="run the segment again: cosma job rerun JOB --from ColmapReconstruction",
        )  # fmt: skip
    return report
