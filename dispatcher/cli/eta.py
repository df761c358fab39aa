"""When something will be done, as commands say it."""

from __future__ import annotations

import dataclasses

from dispatcher.cli.render import clock_text, human_seconds
from dispatcher.core.outlook import Eta, Outlook


def eta_json(eta: Eta | None) -> dict[str, float] | None:
    """Wall-clock Unix seconds."""
    return None if eta is None else dataclasses.asdict(eta)


def eta_text(eta: Eta | None, outlook: Outlook) -> str:
    """`14:20, in 1 h 5 min (14:05 to 15:10 in 8 of 10 cases)`."""
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
