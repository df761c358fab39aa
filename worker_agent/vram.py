"""Peak GPU memory of one attempt, sampled without ever blocking its supervisor."""

from __future__ import annotations

import subprocess

from worker_agent import gpus, processes

_PERIOD_S = 5.0
_GIVE_UP_S = 10.0


class VramSampler:
    """Call `tick` often; about every 5 s it asks the driver, and collects the answer later."""

    def __init__(self, cookie: str) -> None:
        self._cookie = cookie
        self._query: subprocess.Popen[str] | None = None
        self._asked = float("-inf")
        self._peak_mib: float | None = None

    def tick(self, now: float) -> None:
        """`now`: seconds on any monotonic clock."""
        if self._query is None:
            if now - self._asked >= _PERIOD_S and gpus.is_installed():
                self._asked = now
                self._query = gpus.start(gpus.COMPUTE_QUERY, stderr=subprocess.DEVNULL)
        elif self._query.poll() is not None:
            self._collect(self._query)
            self._query = None
        elif now - self._asked > _GIVE_UP_S:
            self._query.kill()

    def _collect(self, query: subprocess.Popen[str]) -> None:
        text, _ = query.communicate()
        used = [
            row.used_mib
            for row in gpus.parse_compute(text)
            if processes.cookie_of(row.pid) == self._cookie
        ]
        if used:
            self._peak_mib = max(self._peak_mib or 0.0, float(sum(used)))

    def finish(self) -> float | None:
        """MiB, the largest sum over the attempt's processes seen; None when never seen."""
        if self._query is not None:
            self._query.kill()
        return self._peak_mib
