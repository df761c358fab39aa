"""When a training ends before its last step: no further gain, a target reached, time used up."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

AVERAGED = 3  # evaluations in a mean: single ones go up and down by 0.3 dB

Ending = Literal["steps", "plateau", "target", "budget"]


def ending(history: Sequence[float], *, gain: float, target: float) -> Ending | None:
    """What the held-out SSIM says, evaluated at equal intervals after the last gaussian was added
    (before that it dips at every refinement); None: go on. 0 switches either test off."""
    if len(history) < AVERAGED:
        return None
    now = statistics.fmean(history[-AVERAGED:])
    if target and now >= target:
        return "target"
    before = history[-2 * AVERAGED : -AVERAGED]
    if gain and len(before) == AVERAGED and now - statistics.fmean(before) < gain:
        return "plateau"
    return None
