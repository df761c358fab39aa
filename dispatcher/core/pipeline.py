"""How long the jobs of a host will keep it busy, and how many of them it takes to. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from dispatcher.core.policy import Ahead

# Times what a steady pipeline needs, as jobs differ in length (docs/decisions/0009).
JUST = 2.0  # near the end of the queue
SPARE = 6.0


def wait_s(heading: Collection[Ahead], gpus: int, limit: Callable[[str], int]) -> float:
    """Until a job that came now would find a device free: the device seconds of all that are
    before it, or the longest line for one of the other slots. `limit`: stages at once, by slot."""
    if not heading:
        return 0.0
    devices = max(1, gpus)
    turns = max(0, len(heading) - devices + 1) / devices
    wait = math.fsum(one.device_s for one in heading) / len(heading) * turns
    lines: dict[str, list[float]] = {}
    for one in heading:
        for slot, seconds in one.slots:
            lines.setdefault(slot, []).append(seconds)
    lines.pop("train", None)
    others = (math.fsum(line) / max(1, limit(slot)) for slot, line in lines.items())
    return max(wait, *others) if lines else wait


def prefetch(
    heading: Collection[Ahead], gpus: int, limit: Callable[[str], int], spare: float = SPARE
) -> int:
    """Jobs beyond one per GPU, as far as their seconds are known. A job takes `lead` seconds until
    it can train; so that no GPU waits for it, the jobs before it must last as long (Little's law),
    which they cannot when another slot than the GPU's is the bottleneck."""
    known = [one for one in heading if one.learned and one.device_s > 0.0]
    if not known:
        return 0
    jobs = len(known)
    lead = math.fsum(one.lead_s for one in known) / jobs
    rate = gpus * jobs / math.fsum(one.device_s for one in known)
    for slot in {slot for one in known for slot, _ in one.slots} - {"train", "stitch"}:
        spent = math.fsum(s for one in known for name, s in one.slots if name == slot) / jobs
        if spent > 0.0:
            rate = min(rate, max(1, limit(slot)) / spent)
    return math.ceil(spare * rate * lead)
