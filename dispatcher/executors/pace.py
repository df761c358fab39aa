"""The bandwidth cap of a host: how long whoever wants to send has to wait. For threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_AHEAD_S = 0.25  # so much may go at once after a pause


class Pace:
    """`bytes_s` bytes a second in all that share it; None: as fast as it goes."""

    def __init__(
        self, bytes_s: float | None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._bytes_s = bytes_s
        self._monotonic = monotonic
        self._free_at = float("-inf")  # when all that was let go will have gone
        self._lock = threading.Lock()

    def delay_s(self, count: int) -> float:
        """Seconds to wait before these bytes may go."""
        if self._bytes_s is None:
            return 0.0
        with self._lock:
            now = self._monotonic()
            begins = max(self._free_at, now - _AHEAD_S)
            self._free_at = begins + count / self._bytes_s
            return max(0.0, begins - now)
