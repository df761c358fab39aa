"""`cosma plan`: what the dispatcher would decide next, and what a change would make of it."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from dispatcher.amounts import clock_text, human_seconds
from dispatcher.cli import options
from dispatcher.cli.eta import eta_json, eta_text
from dispatcher.cli.render import print_json, print_rows
from dispatcher.cli.stored import with_store
from dispatcher.core import whatif
from dispatcher.core.forecast_result import Decided
from dispatcher.core.outlook import MOST_JOBS, Outlook, look_ahead
from dispatcher.core.snapshot import Snapshot
from dispatcher.errors import UsageError
from dispatcher.settings import DispatcherSettings
from dispatcher.store.base import Store
from dispatcher.stored_farm import StoredFarm, load_farm

COLUMNS = ("time", "in", "job", "does", "host", "gpu", "mib")
WAITING = ("job", "reason", "message")
TOO_MANY = f"more than {MOST_JOBS} jobs are not played ahead: this is the next decision only"
MOVED_JOBS = 10  # those whose end a what-if moves most


def plan(
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            "--what-if",
            metavar="CHANGE",
            help="Also with this change, more than one together: " + "; ".join(whatif.GRAMMAR),
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Decisions and waiting jobs shown.")] = 20,
    inventory: options.Inventory = None,
    db: options.Database = None,
    json: options.Json = False,
) -> None:
    """Show the next decisions in order with their times, and when all will be done. Changes
    nothing. With --what-if, what a change of the farm would gain, and what would start at once."""
    changes = _parsed(what_if or [])
    database = DispatcherSettings.load(database=db).database

    async def work(store: Store) -> StoredFarm:
        return await load_farm(store, database, inventory)

    farm = with_store(db, work)
    before = look_ahead(farm.snapshot)
    view = _view(farm, before, limit)
    if changes:
        after = look_ahead(_changed(farm.snapshot, changes), draws=before.draws)
        view["what_if"] = {"changes": what_if, **difference(before, after)}
    if json:
        print_json(view)
    else:
        _show(view, before)


def _parsed(texts: list[str]) -> list[whatif.Change]:
    try:
        return [whatif.parse(text) for text in texts]
    except whatif.WhatIfError as error:
        raise UsageError("--what-if", why=str(error)) from None


def _changed(snapshot: Snapshot, changes: list[whatif.Change]) -> Snapshot:
    try:
        for change in changes:
            snapshot = whatif.apply(snapshot, change)
    except whatif.WhatIfError as error:
        raise UsageError("--what-if", why=str(error)) from None
    return snapshot


def _view(farm: StoredFarm, outlook: Outlook, limit: int) -> dict[str, Any]:
    left_out = outlook.waiting
    return {
        "as_of": outlook.now,
        "notes": [*farm.notes, *([] if outlook.whole else [TOO_MANY])],
        "decisions": [_decision(one, outlook.now) for one in outlook.decisions[:limit]],
        "more_decisions": max(0, len(outlook.decisions) - limit),
        "waiting": [
            {"job": w.job, "reason": w.reason.value, "message": w.message} for w in left_out[:limit]
        ],
        "more_waiting": max(0, len(left_out) - limit),
        "never": [
            {"job": w.job, "reason": w.reason.value, "message": w.message} for w in outlook.left
        ],
        "acquisitions": {name: eta_json(eta) for name, eta in outlook.acquisitions.items()},
        "end": eta_json(outlook.end),
        "interval": {"draws": outlook.draws, "share": outlook.share},
    }


def _decision(one: Decided, now: float) -> dict[str, Any]:
    return {
        "at": one.at,
        "in_s": round(one.at - now, 1),
        "job": one.job,
        "kind": "assign" if one.stage is None else "start",
        "stage": None if one.stage is None else one.stage.value,
        "host": one.host,
        "gpu": one.gpu,
        "mib": one.mib,
    }


def difference(before: Outlook, after: Outlook) -> dict[str, Any]:
    """What a change makes of the outlook. Seconds sooner are negative where it is later."""
    both = before.jobs.keys() & after.jobs.keys()
    gains = {job: before.jobs[job].likely - after.jobs[job].likely for job in both}
    moved = sorted((job for job in both if gains[job]), key=lambda j: (-abs(gains[j]), j))
    return {
        "end": eta_json(after.end),
        "sooner_s": None
        if before.end is None or after.end is None
        else round(before.end.likely - after.end.likely, 1),
        "acquisitions": {
            name: {
                "before": eta_json(before.acquisitions.get(name)),
                "after": eta_json(after.acquisitions.get(name)),
            }
            for name in sorted(before.acquisitions.keys() | after.acquisitions.keys())
        },
        "starts_at_once": sorted(after.at_once - before.at_once),
        "no_longer_at_once": sorted(before.at_once - after.at_once),
        "now_ends": sorted(after.jobs.keys() - before.jobs.keys()),
        "never_ends": sorted(before.jobs.keys() - after.jobs.keys()),
        "jobs": [
            {
                "job": job,
                "before": eta_json(before.jobs[job]),
                "after": eta_json(after.jobs[job]),
                "sooner_s": round(gains[job], 1),
            }
            for job in moved[:MOVED_JOBS]
        ],
    }


def _show(view: dict[str, Any], outlook: Outlook) -> None:
    now = outlook.now
    for note in view["notes"]:
        print(f"note: {note}", file=sys.stderr)
    print_rows(
        COLUMNS,
        [
            {
                **one,
                "time": clock_text(one["at"], now),
                "in": human_seconds(one["in_s"]),
                "does": "goes to" if one["stage"] is None else f"starts {one['stage']}",
                "mib": one["mib"] or None,
            }
            for one in view["decisions"]
        ],
    )
    if view["more_decisions"]:
        print(f"and {view['more_decisions']} more decisions")
    if view["waiting"]:
        print_rows(WAITING, view["waiting"])
    if view["more_waiting"]:
        print(f"and {view['more_waiting']} more jobs wait")
    for one in view["never"]:
        print(f"{one['job']} never ends, as things are: {one['message']}")
    for name, eta in outlook.acquisitions.items():
        print(f"{name} is done at {eta_text(eta, outlook)}")
    if outlook.end is not None and len(outlook.acquisitions) != 1:
        print(f"all that ends is done at {eta_text(outlook.end, outlook)}")
    if "what_if" in view:
        _show_difference(view["what_if"], now)


def _show_difference(gain: dict[str, Any], now: float) -> None:
    print(f"what if: {'; '.join(gain['changes'])}")
    end, sooner = gain["end"], gain["sooner_s"]
    if end is not None:
        then = f"  all that ends is done at {clock_text(end['likely'], now)}"
        print(then if sooner is None else f"{then}, {_moved(sooner)}")
    for key, said in (
        ("starts_at_once", "starts at once"),
        ("no_longer_at_once", "no longer starts at once"),
        ("now_ends", "ends after all"),
        ("never_ends", "never ends any more"),
    ):
        if gain[key]:
            print(f"  {said}: {', '.join(gain[key])}")
    for one in gain["jobs"]:
        print(
            f"  {one['job']}: {clock_text(one['after']['likely'], now)}, {_moved(one['sooner_s'])}"
        )


def _moved(sooner_s: float) -> str:
    if abs(sooner_s) < 1:
        return "as without it"
    return f"{human_seconds(abs(sooner_s))} {'sooner' if sooner_s > 0 else 'later'}"
