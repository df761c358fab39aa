"""How often the dispatcher looks at what tells it nothing by itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Seconds between the things that are looked at again and again."""

    tick_s: float = 0.5  # at most this long without a look at what time alone changes
    poll_s: float = 1.0  # new jobs, requests of other processes, the inventory file
    settle_s: float = 5.0  # at the start: for hosts to answer before the first decision
    probe_s: float = 10.0
    probe_timeout_s: float = 30.0
    heartbeat_s: float = 5.0
    probes_before_giving_up: int = 2  # with `once`: of every host, before a job is held
