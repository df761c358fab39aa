"""This host's clocks: Unix time for records, a monotonic one that counts suspend for leases."""

from __future__ import annotations

import time
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """The kernel's random id of this boot: when it has changed, everything that ran is dead."""
    return _BOOT_ID.read_text().strip()


def boottime() -> float:
    """Seconds since boot, suspend included: a lease never needs two clocks to agree."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall() -> float:
    return time.time()
