"""`cosma summary`: what a survey has come to."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dispatcher.cli import options
from dispatcher.cli.eta import eta_json, eta_text, load_outlook
from dispatcher.cli.render import print_json, print_rows
from dispatcher.cli.stored import known_acquisition, with_store
from dispatcher.core.model import SETTLED
from dispatcher.core.outlook import Outlook
from dispatcher.core.survey import slug
from dispatcher.results import load_results
from dispatcher.settings import DispatcherSettings
from dispatcher.store.base import Store

SEGMENTS = ("segment", "auv", "state", "verdict", "frames", "registered", "reprojection_px", "psnr",
            "ssim", "gaussians", "seconds", "ply")  # fmt: skip
STITCHES = ("stitch", "level", "auv", "state", "ply")


def summary(
    acquisition: Annotated[str, typer.Argument(metavar="ACQUISITION")],
    inventory: options.Inventory = None,
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """Show what a survey has come to.

    Per segment: frames registered, errors, held-out PSNR; per stitch: state and file. While work is
    left, when the survey will be done.
    """
    database = DispatcherSettings.load(database=db).database

    async def work(store: Store) -> tuple[dict[str, Any], Outlook | None]:
        survey = await known_acquisition(store, acquisition)
        found = await load_results(store, survey)
        outlook = await load_outlook(store, database, inventory)
        etas = outlook.jobs if outlook is not None else {}
        view = {
            "eta": eta_json(outlook.acquisitions.get(survey)) if outlook is not None else None,
            "segments": [
                {
                    "segment": item.segment.label,
                    "job": item.job.id,
                    "auv": item.segment.auv,
                    "state": item.job.state.value,
                    "eta": eta_json(etas.get(item.job.id)),
                    "verdict": item.verdict.get("verdict"),
                    **item.figures,
                    "ply": str(item.files["ply"]) if "ply" in item.files else None,
                }
                for item in found.segments
            ],
            "stitches": [
                {
                    "stitch": item.stitch.id,
                    "level": item.stitch.level.value,
                    "auv": item.stitch.auv,
                    "state": item.stitch.state.value,
                    "ply": str(item.files["ply"]) if "ply" in item.files else None,
                }
                for item in found.stitches
            ],
        }
        return view, outlook

    view, outlook = with_store(db, work)
    if json:
        print_json(view)
        return
    rows = [*view["segments"], *view["stitches"]]
    print_rows(SEGMENTS, view["segments"])
    print_rows(STITCHES, view["stitches"])
    if outlook is not None and any(row["state"] not in SETTLED for row in rows):
        print(f"done: {eta_text(outlook.acquisitions.get(slug(acquisition)), outlook)}")
