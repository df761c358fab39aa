"""`cosma calibrate`: the camera of a finished segment as settings for the next ones."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer

from dispatcher.cli import options
from dispatcher.cli.render import print_json
from dispatcher.cli.stored import known_job, with_store
from dispatcher.errors import CosmaError, UsageError
from dispatcher.store.base import Store

MIN_SHARE = 0.9  # of the frames registered: a camera that half of them agree on is no calibration
MAX_ERROR_PX = 1.5
MAX_FOCAL_UNCERTAINTY = 0.005  # a camera that hardly turned: another segment's would differ


def calibrate(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A segment that is done.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the profile here, not to stdout.")
    ] = None,
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """Print the lens that a segment's frames agree on, as settings: give them to `cosma ingest
    --config` for footage of the same camera, lens mode and housing."""

    async def work(store: Store) -> dict[str, Any]:
        found = await known_job(store, job)
        rows = await store.artifacts(job=found.id)
        paths = [row.local_path for row in rows if row.kind == "sfm_report" and row.local_path]
        if not paths:
            raise UsageError(
                "no calibration", where=job, why="its SfM report is not here",
                fix="wait until it is done, and name a segment, not a stitch",
            )  # fmt: skip
        return _report(Path(paths[-1]))

    report = with_store(db, work)
    profile = {
        "camera_model": report["camera"]["model"],
        "camera_params": [round(float(value), 6) for value in report["camera"]["params"]],
    }
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
    if json:
        print_json({"sfm": profile, "width": report["camera"]["width"],
                    "height": report["camera"]["height"]})  # fmt: skip
        return
    text = (
        f"# From {job}: {report['registered']} of {report['frames']} frames, {error:.2f} px. For "
        f"footage of {report['camera']['width']}x{report['camera']['height']}\n"
        "# with the same camera, lens mode and housing.\n"
        f"sfm:\n  camera_model: {profile['camera_model']}\n"
        f"  camera_params: {profile['camera_params']}\n"
    )
    if out is None:
        print(text, end="")
        return
    try:
        out.write_text(text)
    except OSError as failure:
        raise CosmaError("cannot write", where=str(out), why=str(failure.strerror)) from None


def _report(path: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = jsonlib.loads(path.read_text())
    except (OSError, ValueError) as failure:
        raise CosmaError(
            "the SfM report cannot be read", where=str(path), why=str(failure),
            fix="cosma fsck --fix collects it again",
        ) from None  # fmt: skip
    if not isinstance(report, dict) or "camera" not in report:
        raise CosmaError(
            "no calibration", where=str(path), why="the report is of an agent that kept no camera",
            fix="run the segment again: cosma job rerun JOB --from ColmapReconstruction",
        )  # fmt: skip
    return report
