"""The dispatcher's two clocks: wall time for records, monotonic time for durations."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Wall clock, Unix seconds: for what is written down, never for durations."""
        ...

    def monotonic(self) -> float:
        """Seconds that never jump: for durations, never for what is written down."""
        ...

    def boot(self) -> str:
        """Within one boot of the machine, `monotonic` of all processes is the same clock."""
        ...


class SystemClock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def boot(self) -> str:
        return _boot_id()


@cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(slots=True)
class ManualClock:
    """A clock that moves only when told to: replays and tests."""

    wall: float = 1_700_000_000.0
    steady: float = 0.0
    machine_boot: str = "boot-1"

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.steady

    def boot(self) -> str:
        return self.machine_boot

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds
