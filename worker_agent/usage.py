"""Peak RAM and disk of one attempt, sampled so that looking costs a hundredth of a core at most."""

from __future__ import annotations

import os
import time
from pathlib import Path

from worker_agent import processes

_RAM_PERIOD_S = 1.0
_DISK_PERIOD_S = 5.0
_SHARE = 100.0  # the next look comes no sooner than so many times what the last one took
_BLOCK = 512  # st_blocks: see inode(7)


class UsageWatch:
    """Call `tick` often, and `finish` while the stage's processes are still there."""

    def __init__(self, run_dir: Path, stage: int) -> None:
        self._run_dir = run_dir
        self._stage = stage
        self._page_mib = os.sysconf("SC_PAGE_SIZE") / 2**20
        self._ram_at = self._disk_at = 0.0
        self._peak_pages = 0
        self._disk_before = self._disk_peak = disk_bytes(run_dir)

    def tick(self, now: float) -> None:
        """`now`: seconds on any monotonic clock."""
        if now >= self._ram_at:
            self._ram_at = now + max(_RAM_PERIOD_S, _SHARE * self._look_at_ram())
        if now >= self._disk_at:
            self._disk_at = now + max(_DISK_PERIOD_S, _SHARE * self._look_at_disk())

    def _look_at_ram(self) -> float:
        began = time.monotonic()
        stats = (processes.stat_of(pid) for pid in processes.tree(self._stage))
        # Memory that several share counts for each of them.
        pages = sum(stat.rss_pages for stat in stats if stat is not None)
        self._peak_pages = max(self._peak_pages, pages)
        return time.monotonic() - began

    def _look_at_disk(self) -> float:
        began = time.monotonic()
        self._disk_peak = max(self._disk_peak, disk_bytes(self._run_dir))
        return time.monotonic() - began

    def finish(self) -> tuple[float, int]:
        """(MiB that the stage and all below it had at once, bytes by which its run directory
        grew): the most that was seen."""
        self._look_at_disk()
        return self._peak_pages * self._page_mib, self._disk_peak - self._disk_before


def disk_bytes(path: Path | str) -> int:
    """Blocks that the files below `path` take; what vanishes meanwhile counts as nothing."""
    total = 0
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    total += disk_bytes(entry.path)
                else:
                    total += entry.stat(follow_symlinks=False).st_blocks * _BLOCK
    except OSError:
        return total
    return total
