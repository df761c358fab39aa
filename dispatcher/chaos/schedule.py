"""Which faults a seed means, where, when and for how long. Pure: the same seed, the same plan."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

# The last faults come while there is still work to be disturbed.
FIRST_AT, LAST_AT = 0.02, 0.8
_LONG_FROM = 6
_LONG_AT = 0.2  # so that the rest of the farm has something to do meanwhile


class Kind(StrEnum):
    SESSION_KILLED = "session_killed"
    LINK_DOWN = "link_down"
    BLACKHOLE = "blackhole"
    POWER_CUT = "power_cut"
    DISPATCHER_KILLED = "dispatcher_killed"
    DISPATCHER_KILLED_BEFORE_SEND = "dispatcher_killed_before_send"
    SECOND_DISPATCHER = "second_dispatcher"
    SUPERVISOR_KILLED = "supervisor_killed"
    DISK_FULL = "disk_full"
    GPU_HUNG = "gpu_hung"
    CLOCK_JUMP = "clock_jump"
    TRANSFER_TRUNCATED = "transfer_truncated"
    VRAM_THIEF = "vram_thief"
    LEASE_OUTLASTED = "lease_outlasted"
    HOST_HUNG = "host_hung"


# Seconds a fault lasts, shortest and longest; the others are over at once.
LASTING: dict[Kind, tuple[float, float]] = {
    Kind.LINK_DOWN: (2.0, 8.0),
    Kind.BLACKHOLE: (3.0, 8.0),
    Kind.POWER_CUT: (1.0, 4.0),
    Kind.DISK_FULL: (1.0, 3.0),
    Kind.GPU_HUNG: (6.0, 12.0),
    Kind.CLOCK_JUMP: (4.0, 10.0),
    Kind.VRAM_THIEF: (3.0, 8.0),
    Kind.LEASE_OUTLASTED: (34.0, 38.0),  # the lease of a drill is 24 s
    Kind.HOST_HUNG: (3.0, 8.0),
}
# A small drill brings all its inputs at once, at the start.
_AT_ONCE = frozenset({Kind.TRANSFER_TRUNCATED})
_CLOCK_JUMPS_S = (-86_400.0, -3600.0, -60.0, 60.0, 3600.0, 86_400.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """`after`: the number of ended attempts from which it is due."""

    kind: Kind
    host: str
    after: int
    lasts_s: float = 0.0
    size: float = 0.0  # CLOCK_JUMP: seconds


def plan(
    seed: int, hosts: list[str], jobs: int, stages: int, kinds: list[Kind] | None = None
) -> list[Fault]:
    """Every kind once, and one more fault for every four jobs; in order of `after`. A drill of
    less than _LONG_FROM jobs has no outage that outlasts a lease: it would only wait for its end.
    """
    rng = random.Random(seed)
    every = list(kinds or Kind)
    more = [kind for kind in every if kind is not Kind.LEASE_OUTLASTED]
    chosen = every if jobs >= _LONG_FROM else more
    chosen = chosen + [rng.choice(more) for _ in range(jobs // 4)]
    faults = []
    for kind in chosen:
        latest = _LONG_AT if kind is Kind.LEASE_OUTLASTED else LAST_AT
        share = 0.0 if kind in _AT_ONCE else rng.uniform(FIRST_AT, latest)
        shortest, longest = LASTING.get(kind, (0.0, 0.0))
        faults.append(
            Fault(
                kind=kind,
                host=rng.choice(hosts),
                after=int(share * stages),
                lasts_s=round(rng.uniform(shortest, longest), 2),
                size=rng.choice(_CLOCK_JUMPS_S) if kind is Kind.CLOCK_JUMP else 0.0,
            )
        )
    return sorted(faults, key=lambda fault: (fault.after, fault.kind, fault.host))
