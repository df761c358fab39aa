"""How far the inputs of a job are on their way to its host: bytes, rate, time left. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from dispatcher.amounts import human_bytes, human_seconds

WINDOW_S = 10.0  # over which the rate is taken


@dataclass(slots=True)
class Arriving:
    """Of `total` bytes in all files; `path` -> bytes that are there."""

    total: int
    what: str = "inputs"
    there: dict[str, int] = field(default_factory=dict)
    _seen: deque[tuple[float, int]] = field(default_factory=deque)  # (when, bytes)

    @property
    def bytes(self) -> int:
        return min(self.total, sum(self.there.values()))

    def of(self, path: str) -> Callable[[int, int], None]:
        """To be told how much of that file is there."""

        def told(there: int, _: int) -> None:
            self.there[path] = there

        return told

    def look(self, now: float) -> str:
        """One line for the operator; to be called now and then."""
        self._seen.append((now, self.bytes))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW_S:
            self._seen.popleft()
        begun, had = self._seen[0]
        text = f"{self.what}: {human_bytes(self.bytes)} of {human_bytes(self.total)}"
        if now <= begun:
            return text
        rate = (self.bytes - had) / (now - begun)
        if rate <= 0:
            return f"{text}, nothing for {now - begun:.0f} s"
        left = human_seconds((self.total - self.bytes) / rate)
        return f"{text}, {human_bytes(rate)}/s, {left} left"
