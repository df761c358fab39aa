"""Which of the jobs without a host get one now. Pure; works on a board's queue and yard.

Order: priority, then the acquisition and kind with the smallest share of the hosts that could take
the job, then age. Counted on those hosts only, a job that few hosts can hold does not stand back
behind those that could go anywhere, and neither stitches nor segments starve. Jobs that find no
host are left for this decision, and never block the others; but one that has waited for longer
than the policy's patience keeps the disk of a host that only lacks disk.

By earliest finish a job is not given a slow host that has room when a busy fast one would be done
with it sooner, unless the fast ones have enough to do with the rest of the queue: else the last
jobs of all end on the slowest hosts, long after the others. Only where seconds were learned.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping

from dispatcher.core.ledger import Ledger, Refusal
from dispatcher.core.model import Job, Reason
from dispatcher.core.policy import Policy, device_stage, share_key
from dispatcher.core.queue import Label, Queue
from dispatcher.core.yard import Device, Rank, Yard

LOOKED_AT = 8  # hosts of one kind that are compared: their links may differ
MANY = 8  # jobs in the queue for each device: then none is too slow
Key = tuple[float, ...]


class Assigner:
    def __init__(
        self, policy: Policy, yard: Yard, queue: Queue, ledgers: Mapping[str, Ledger]
    ) -> None:
        self._policy = policy
        self._yard = yard
        self._queue = queue
        self._ledgers = ledgers
        self._queue_ends: dict[frozenset[Device], float] = {}
        self._full: dict[int, int] = {}  # kind of host -> fewest bytes that none of them can take
        self._kept: dict[str, str] = {}  # host -> old job that its disk is kept for
        self._held: list[tuple[tuple[str, str], int]] = []
        self.coming: dict[str, tuple[str, Label]] = {}  # job -> its host

    def undo(self) -> dict[str, tuple[str, Label]]:
        """Take back the last decision; what came of it is told as jobs. Returns the jobs with
        the hosts they had got; they are to be put into the queue again."""
        jobs = dict(self.coming)
        for job, (host, _) in self.coming.items():
            if host in self._ledgers:
                self._ledgers[host].expect_no_more(job)
        for share, bit in self._held:
            self._queue.hold(share, bit, -1)
        self._held.clear()
        self.coming.clear()
        self._full.clear()
        self._kept.clear()
        self._queue_ends.clear()
        return jobs

    def assign(self, jobs: Mapping[str, Job], now: float) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        yard, shelves = self._yard, self._queue.shelves
        heap = [
            (-label.priority, *shelf.first(), number, label)
            for number, (label, shelf) in enumerate(shelves.items())
            if label.fit.kinds & yard.open_mask
        ]
        heapq.heapify(heap)
        while heap and yard.open_mask:
            *known, number, label = heapq.heappop(heap)
            shelf = shelves.get(label)
            if shelf is None or not label.fit.kinds & yard.open_mask:
                continue
            first = (-label.priority, *shelf.first())
            if first != tuple(known):  # a share grew since
                heapq.heappush(heap, (*first, number, label))
                continue
            job = jobs[first[-1]]
            ledger = self._choose(job, label)
            if ledger is None:
                if job.created_at + self._policy.patience_s <= now:
                    self._keep_disk(job, label)
                continue
            self._give(job, label, ledger)
            found.append((job.id, ledger.host.name))
            if label in shelves:
                heapq.heappush(heap, (-label.priority, *shelf.first(), number, label))
        return found

    def _give(self, job: Job, label: Label, ledger: Ledger) -> None:
        name, share = ledger.host.name, share_key(job)
        bit = self._yard.kind_of(name).bit
        self._queue.drop(job.id)
        self._queue.hold(share, bit, +1)
        self._held.append((share, bit))
        self.coming[job.id] = (name, label)
        ledger.expect(job)
        self._yard.put(ledger)

    def _choose(self, job: Job, label: Label) -> Ledger | None:
        avoid = self._avoided(job, label)
        plain = not (avoid or label.leaves or label.cached)
        best: tuple[Key, Rank] | None = None
        latest = self._latest_s(job, label, avoid)
        for kind in self._yard.open_kinds(label.fit.kinds):
            if label.bytes >= self._full.get(kind.bit, label.bytes + 1):
                continue
            refused: set[Reason] = set()
            taken = 0
            for rank in kind.open:
                ledger = self._ledgers[rank[-1]]
                refusal = self._refuse(job, label, ledger, avoid)
                if refusal is not None:
                    refused.add(refusal[0])
                    continue
                taken += 1
                offer = self._key(job, ledger, rank), rank
                if offer[0][-1] <= latest:
                    best = offer if best is None or offer < best else best
                if taken == LOOKED_AT:
                    break
            if plain and not taken and refused == {Reason.DISK_LOW}:
                self._full[kind.bit] = label.bytes
        for rank in self._with_inputs(label):
            ledger = self._ledgers[rank[-1]]
            if self._refuse(job, label, ledger, avoid) is None:
                offer = self._key(job, ledger, rank), rank
                best = offer if best is None or offer < best else best
        return self._ledgers[best[1][-1]] if best is not None else None

    def _latest_s(self, job: Job, label: Label, avoid: frozenset[str]) -> float:
        """By when the job must be done for a host to be worth taking: when the best of all hosts,
        with room or not, would be done with it, or the farm with the whole queue."""
        if self._policy.order != "earliest_finish" or not self._yard.device_ms(job):
            return math.inf
        queue_s = self._queue_s(label.fit.devices or frozenset())
        if queue_s == math.inf:
            return queue_s
        earliest = math.inf
        for kind in self._yard.kinds_in(label.fit.kinds):
            for rank in kind.every[:LOOKED_AT]:
                ledger = self._ledgers[rank[-1]]
                if ledger.host.gpus and self._refuse(job, label, ledger, avoid) is None:
                    earliest = min(earliest, self._key(job, ledger, rank)[-1])
        return max(earliest, queue_s)

    def _queue_s(self, devices: frozenset[Device]) -> float:
        """Seconds until these devices can have done all that waits for them: each as many jobs of
        the mean length as end by then, after what it has before it. inf: much later."""
        known = self._queue_ends.get(devices)
        if known is None:
            known = self._queue_ends[devices] = self._work_out_queue(devices)
        return known

    def _work_out_queue(self, devices: frozenset[Device]) -> float:
        jobs, work = self._queue.jobs, self._queue.work_ms
        most = max((jobs[device] for device in devices), default=0)
        lines = [
            (rank[0], 0.001 * work[device] / jobs[device])
            for kind in self._yard.kinds.values()
            for device in kind.devices
            if device in devices and jobs[device]
            for rank in kind.every
        ]
        if not lines or most > MANY * len(lines):
            return math.inf
        low, high = 0.0, max(wait + (MANY + 1) * each for wait, each in lines)
        while high - low > 0.01 * high:
            middle = (low + high) / 2
            ended = sum(max(0, int((middle - wait) / each)) for wait, each in lines)
            low, high = (low, middle) if ended >= most else (middle, high)
        return high

    def _with_inputs(self, label: Label) -> Iterator[Rank]:
        """Open hosts that have some of the job's bytes, wherever they stand in their order."""
        for kind in self._yard.open_kinds(label.fit.kinds) if label.cached else ():
            yield from (rank for rank in kind.open if rank[-1] in label.cached[1:])

    def _refuse(
        self, job: Job, label: Label, ledger: Ledger, avoid: frozenset[str]
    ) -> Refusal | None:
        """Of an open host of a kind that can hold the job."""
        name = ledger.host.name
        if name == label.leaves:
            return Reason.SLOT_BUSY, "is to be left"
        if name in avoid:
            others = ", ".join(sorted(self._others(job, label)))
            return Reason.SLOT_BUSY, f"failed this job before; waits for {others}"
        holder = self._kept.get(name)
        if holder is not None:
            return Reason.DISK_LOW, f"its disk is kept for {holder}, which has waited for long"
        if not all(map(ledger.usable, ledger.host.gpus)):
            refusal = ledger.unfit(job) or ledger.suspect(job)
            if refusal is not None and ledger.host.gpus:
                return refusal
        return ledger.full_disk(self._missing(label, ledger), assigning=True)

    def _missing(self, label: Label, ledger: Ledger) -> int:
        there = ledger.host.cached_bytes.get(label.cached[0], 0) if label.cached else 0
        return max(0, label.bytes - there)

    def _avoided(self, job: Job, label: Label) -> frozenset[str]:
        """Hosts that failed the job are taken only when no other could ever take it."""
        return label.avoid if label.avoid and self.has_others(job, label) else frozenset()

    def has_others(self, job: Job, label: Label) -> bool:
        """Whether a host could take the job some time that did not fail it."""
        return next(self._others(job, label), None) is not None

    def _others(self, job: Job, label: Label) -> Iterator[str]:
        for bit, kind in self._yard.kinds.items():
            for name in kind.up if label.fit.kinds >> bit & 1 else ():
                ledger = self._ledgers[name]
                if name in label.avoid or name == label.leaves:
                    continue
                if not ledger.host.gpus or ledger.unfit(job) is None:
                    yield name

    def _key(self, job: Job, ledger: Ledger, rank: Rank) -> Key:
        """The smallest is chosen; equal ones go by rank."""
        host, order = ledger.host, self._policy.order
        stage = device_stage(job)
        # Only where no host with a GPU has room.
        helper = float(stage is not None and not host.gpus)
        if order == "earliest_finish":
            ahead = self._policy.ahead(job, host.gpus)
            link = host.link_bytes_s or self._policy.link_bytes_s
            there = ledger.bytes_missing(job) / link + ahead.lead_s
            return helper, max(there, rank[0]) + ahead.device_s
        if order == "best_fit":
            sizes = [gpu.total_mib for gpu in host.gpus if stage is None or ledger.holds(gpu, job)]
            return helper, rank[0], float(min(sizes, default=0))
        return (helper,)

    def _keep_disk(self, job: Job, label: Label) -> None:
        """Of the host that has the most, if what its jobs have there would make it enough."""
        avoid = self._avoided(job, label)
        roomy: list[tuple[int, str]] = []
        for kind in self._yard.open_kinds(label.fit.kinds):
            for rank in kind.open:
                ledger = self._ledgers[rank[-1]]
                refusal = self._refuse(job, label, ledger, avoid)
                if refusal is None or refusal[0] is not Reason.DISK_LOW or rank[-1] in self._kept:
                    continue
                if ledger.idle_disk() >= self._missing(label, ledger):
                    roomy.append((ledger.open_disk(), rank[-1]))
        if roomy:
            self._kept[max(roomy)[1]] = job.id

    def refusal(self, job: Job, label: Label, ledger: Ledger) -> Refusal:
        """Why the last decision did not give the job this host."""
        bit = self._yard.kind_of(ledger.host.name).bit
        helper = not ledger.host.gpus and bool(label.fit.kinds >> bit & 1)
        return (
            ledger.refuse(job, self._missing(label, ledger), helper=helper)
            or self._refuse(job, label, ledger, self._avoided(job, label))
            or self._late(job, label, ledger)
            or (Reason.SLOT_BUSY, "is free; the next decision is due")
        )

    def _late(self, job: Job, label: Label, ledger: Ledger) -> Refusal | None:
        latest = self._latest_s(job, label, self._avoided(job, label))
        here = self._key(job, ledger, self._yard.rank_of(ledger.host.name))[-1]
        if here <= latest:
            return None
        return Reason.SLOT_BUSY, (
            f"would be done with it in {here:.0f} s, and a busy host before {latest:.0f} s"
        )
