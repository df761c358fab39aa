"""Peak GPU memory of one attempt, watched without ever blocking its supervisor."""

from __future__ import annotations

from worker_agent import driver_query, nvidia_smi, nvml, processes
from worker_agent.driver_query import Child

_PERIOD_S = 5.0
_GIVE_UP_S = 10.0


class VramWatch:
    """Call `tick` often, and `finish` at the end. A child watches the attempt's processes by NVML;
    where that cannot be asked, nvidia-smi is, about every 5 s."""

    def __init__(self, gpu: str, cookie: str) -> None:
        self._smi = _SmiSampler(gpu, cookie)
        self._said = ""
        self._watcher: Child | None = None
        try:
            self._watcher = driver_query.Child(nvml.command("watch", gpu, cookie))
        except OSError:
            return  # no process to be had now; nvidia-smi is tried later

    def tick(self, now: float) -> None:
        """`now`: seconds on any monotonic clock."""
        if self._watcher is None:
            self._smi.tick(now)
            return
        self._said = self._watcher.said()
        if self._watcher.ended():
            self._watcher.end()
            self._watcher = None

    def finish(self) -> float | None:
        """MiB, the largest sum over the attempt's processes seen; None when never seen."""
        if self._watcher is not None:
            self._said = self._watcher.said()
            # Ended before the attempt's processes are: it must not be taken for one of them.
            self._watcher.end()
        peaks = [float(line) for line in self._said.splitlines() if line.isdigit()]
        known = self._smi.finish()
        return max([*peaks, *([] if known is None else [known])], default=None)


class _SmiSampler:
    """Asks, and collects the answer later."""

    def __init__(self, gpu: str, cookie: str) -> None:
        self._gpu = gpu
        self._cookie = cookie
        self._query: Child | None = None
        self._asked = float("-inf")
        self._peak_mib: float | None = None

    def tick(self, now: float) -> None:
        if self._query is None:
            if now - self._asked >= _PERIOD_S and nvidia_smi.is_installed():
                self._asked = now
                self._query = nvidia_smi.start(nvidia_smi.COMPUTE_QUERY)
        elif self._query.ended():
            self._collect(self._query)
            self._query = None
        elif now - self._asked > _GIVE_UP_S:
            self._query.kill()

    def _collect(self, query: Child) -> None:
        used = [
            row.used_mib
            for row in nvidia_smi.parse_compute("\n".join(query.end().lines))
            if row.used_mib is not None
            and row.gpu == self._gpu
            and processes.cookie_of(row.pid) == self._cookie
        ]
        if used:
            self._peak_mib = max(self._peak_mib or 0.0, float(sum(used)))

    def finish(self) -> float | None:
        if self._query is not None:
            self._query.end()
        return self._peak_mib
