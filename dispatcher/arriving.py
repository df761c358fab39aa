"""How far the inputs of a job are on their way to its host: bytes, rate, time left. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 10.0  # over which the rate is taken


@dataclass(slots=True)
class Arriving:
    """Of `total` bytes in all files; `path` -> bytes that are there."""

    total: int
    there: dict[str, int] = field(default_factory=dict)
    _seen: deque[tuple[float, int]] = field(default_factory=deque)  # (when, bytes)

    @property
    def bytes(self) -> int:
        return min(self.total, sum(self.there.values()))

    def look(self, now: float) -> str:
        """One line for the operator; to be called now and then."""
        self._seen.append((now, self.bytes))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW_S:
            self._seen.popleft()
        begun, had = self._seen[0]
        text = f"inputs: {_size(self.bytes)} of {_size(self.total)}"
        if now <= begun:
            return text
        rate = (self.bytes - had) / (now - begun)
        if rate <= 0:
            return f"{text}, nothing for {now - begun:.0f} s"
        return f"{text}, {_size(rate)}/s, {_left((self.total - self.bytes) / rate)} left"


def _size(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _left(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
