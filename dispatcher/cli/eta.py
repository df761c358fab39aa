"""When something will be done, as commands say it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from dispatcher.amounts import clock_text, human_seconds
from dispatcher.core.outlook import MOST_JOBS, Eta, Outlook, look_ahead
from dispatcher.errors import InventoryError
from dispatcher.store.base import Store
from dispatcher.stored_farm import load_farm


async def load_outlook(store: Store, database: Path, inventory: Path | None) -> Outlook | None:
    """None where nothing is left to do, or too much to say when it ends while a list waits."""
    active = len(await store.load_jobs(active_only=True))
    if active > MOST_JOBS:
        print(f"note: no ETA with more than {MOST_JOBS} jobs here: cosma plan", file=sys.stderr)
    if not 0 < active <= MOST_JOBS:
        return None
    try:
        farm = await load_farm(store, database, inventory)
    except InventoryError as error:
        print(f"note: no ETA: {error.line}", file=sys.stderr)
        return None
    return look_ahead(farm.snapshot)


def eta_json(eta: Eta | None) -> dict[str, float] | None:
    """Wall-clock Unix seconds."""
    return None if eta is None else dataclasses.asdict(eta)


def eta_text(eta: Eta | None, outlook: Outlook) -> str:
    """`14:20, in 1 h 5 min (14:05 to 15:10 in 8 of 10 cases)`."""
    if not outlook.whole:
        return f"not worked out for more than {MOST_JOBS} jobs"
    if eta is None:
        return "never, as things are"
    low, likely, high = (clock_text(at, outlook.now) for at in (eta.low, eta.likely, eta.high))
    return (
        f"{likely}, in {human_seconds(eta.likely - outlook.now)} "
        f"({low} to {high} in {outlook.share * 10:.0f} of 10 cases)"
    )


def eta_short(eta: Eta | None, now: float) -> str:
    """`14:20 (14:05-15:10)`, or "" for none."""
    if eta is None:
        return ""
    low, likely, high = (clock_text(at, now) for at in (eta.low, eta.likely, eta.high))
    return f"{likely} ({low}-{high})"
