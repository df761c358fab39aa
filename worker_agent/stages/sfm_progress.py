"""How far along ColmapReconstruction is at each step of its ladder. Pure."""

from __future__ import annotations

__all__ = ["SHARES", "label_of"]

# Where each step begins and ends within the stage, for progress.
SHARES = {
    "extract": (0.0, 0.3),
    "sequential match": (0.3, 0.55),
    "sequential map_global": (0.55, 0.7),
    "sequential map_incremental": (0.7, 0.75),
    "exhaustive match": (0.75, 0.78),
    "exhaustive map_global": (0.78, 0.81),
    "exhaustive map_incremental": (0.81, 0.84),
    "strong extract": (0.84, 0.87),
    "strong sequential match": (0.87, 0.89),
    "strong sequential map_global": (0.89, 0.9),
    "strong sequential map_incremental": (0.9, 0.91),
    "strong exhaustive match": (0.91, 0.93),
    "strong exhaustive map_global": (0.93, 0.94),
    "strong exhaustive map_incremental": (0.94, 0.95),
    "finish": (0.95, 1.0),
}


def label_of(step: str, pairs: str, *, strong: bool) -> str:
    """Of SHARES."""
    label = step if step in ("extract", "finish") else f"{pairs} {step}"
    return f"strong {label}" if strong and step != "finish" else label
