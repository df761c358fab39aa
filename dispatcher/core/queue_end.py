"""How the end of the queue is met, so that all hosts end at about the same time. Pure.

While there is much to do, order and hosts follow from shares, age and speed alone. With few jobs
left it matters that none of them begins last on a slow host, or last of all because it is long,
or has to be tried again then: of acquisitions with about the same share the longest come first, and
hosts take no more than they need to keep busy. Only where seconds were learned. The figures:
docs/decisions/0009.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

from dispatcher.core.queue import Queue
from dispatcher.core.yard import Device, HostKind, Yard

MANY = 8  # jobs in the queue for each device: then its end is far away
NEAR = 5  # jobs in the queue for each device: then the longest come first
FEW = 2  # jobs in the queue for each device: then hosts take no more than they need


class Closing:
    def __init__(self, yard: Yard, queue: Queue) -> None:
        self._yard = yard
        self._queue = queue
        self._ends: dict[frozenset[Device], float] = {}

    def begin(self) -> None:
        """Of a new decision."""
        self._ends.clear()

    def ends_s(self, devices: frozenset[Device]) -> float:
        """Seconds until these devices can have done all that waits for them; inf: much later."""
        known = self._ends.get(devices)
        if known is None:
            known = self._ends[devices] = self._work_out(devices)
        return known

    def _work_out(self, devices: frozenset[Device]) -> float:
        """Each device takes on jobs of the mean length after what it has before it; the last one
        of each is, in the mean, half done when all are."""
        jobs = self._queue.jobs
        most = max((jobs[device] for device in devices), default=0)
        kinds = [kind for kind in self._yard.kinds.values() if self._each_s(kind, devices)]
        lines = sum(len(kind.every) * self._able(kind, devices) for kind in kinds)
        if not lines or most > MANY * lines:
            return math.inf
        done = rate = at = 0.0
        for first_end, each in heapq.merge(*(self._ends_of(kind, devices) for kind in kinds)):
            if done + rate * (first_end - at) >= most:
                break
            done, at = done + rate * (first_end - at) + 0.5, first_end
            rate += 1.0 / each
        return at + max(0.0, most - done) / rate

    def _ends_of(self, kind: HostKind, devices: frozenset[Device]) -> Iterator[tuple[float, float]]:
        """When each device of the kind ends its first job, and the seconds between two of them."""
        each = self._each_s(kind, devices)
        for rank in kind.every:
            for _ in range(self._able(kind, devices)):
                yield rank[0] + each, each

    def _able(self, kind: HostKind, devices: frozenset[Device]) -> int:
        return sum(device in devices for device in kind.devices)

    def _each_s(self, kind: HostKind, devices: frozenset[Device]) -> float:
        """Of a job of the mean length on one device of the kind; 0: it does none."""
        jobs, work = self._queue.jobs, self._queue.work_ms
        rates = [
            1000.0 * jobs[device] / work[device]
            for device in kind.devices
            if device in devices and work[device]
        ]
        return len(rates) / sum(rates) if rates else 0.0

    @property
    def near(self) -> bool:
        """Whether the longest jobs are to come first."""
        return len(self._queue) <= NEAR * self._lines

    @property
    def few(self) -> bool:
        """Whether so few jobs are left that each is better left to the host that first needs it."""
        return len(self._queue) <= FEW * self._lines

    @property
    def _lines(self) -> int:
        return sum(len(kind.every) * len(kind.devices) for kind in self._yard.kinds.values())
