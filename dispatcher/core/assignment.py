"""Which of the jobs without a host get one now. Pure; works on a board's queue and yard.

Order: priority, then the acquisition and kind with the smallest share of the hosts that could take
the job, then age. Counted on those hosts only, a job that few hosts can hold does not stand back
behind those that could go anywhere, and neither stitches nor segments starve. Jobs that find no
host are left for this decision, and never block the others; but one that has waited for longer
than the policy's patience keeps the disk of a host that only lacks disk.

By earliest finish a job is not given a slow host that has room when a busy fast one would be done
with it sooner, unless the fast ones have enough to do with the rest of the queue: else the last
jobs of all end on the slowest hosts, long after the others. Near the end of the queue the longest
jobs come first among about equal shares (dispatcher.core.queue_end). Only where seconds were
learned.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Iterator, Mapping

from dispatcher.core.ledger import Ledger, Refusal
from dispatcher.core.model import Job, Reason
from dispatcher.core.policy import Policy, device_stage, share_key
from dispatcher.core.queue import Label, Place, Queue
from dispatcher.core.queue_end import Closing
from dispatcher.core.yard import HostKind, Rank, Yard

LOOKED_AT = 8  # hosts of one kind that are compared: their links may differ
Key = tuple[float, ...]


class Assigner:
    def __init__(
        self, policy: Policy, yard: Yard, queue: Queue, ledgers: Mapping[str, Ledger]
    ) -> None:
        self._policy = policy
        self._yard = yard
        self._queue = queue
        self._ledgers = ledgers
        self._closing = Closing(yard, queue)
        self._earliest: dict[Hashable, float] = {}  # until a job is given a host
        self._sated: dict[int, bool] = {}  # kind of host -> whether none needs a job
        self._full: dict[int, int] = {}  # kind of host -> fewest bytes that none of them can take
        self._kept: dict[str, str] = {}  # host -> old job that its disk is kept for
        self._held: list[tuple[tuple[str, str], int]] = []
        self.coming: dict[str, tuple[str, Label]] = {}  # job -> its host

    def learn(self, policy: Policy) -> None:
        """Other needs, of a decision that was undone."""
        self._policy = policy

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
        self._closing.begin()
        self._earliest.clear()
        self._sated.clear()
        return jobs

    def assign(
        self, jobs: Mapping[str, Job], now: float, most: int | None = None
    ) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        yard, queue, shelves = self._yard, self._queue, self._queue.shelves
        if not yard.open_mask:
            return found
        queue.settle()
        longest_first = self._policy.order == "earliest_finish" and self._closing.near

        def entry(number: int, label: Label) -> tuple[Key, Place, int, Label]:
            first = queue.first(label)
            return self._before(label, first, longest_first), first, number, label

        heap = [
            entry(number, label)
            for number, label in enumerate(shelves)
            if label.fit.kinds & yard.open_mask
        ]
        heapq.heapify(heap)
        while heap and yard.open_mask and len(found) != most:
            _, first, number, label = heapq.heappop(heap)
            if label not in shelves or not label.fit.kinds & yard.open_mask:
                continue
            if queue.first(label) != first:  # a share grew since
                heapq.heappush(heap, entry(number, label))
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
                heapq.heappush(heap, entry(number, label))
        return found

    def _before(self, label: Label, first: Place, longest_first: bool) -> Key:
        """What goes before share and age. Longest first keeps shares fair within a factor of two,
        and what has no known length, as a stitch, does not stand back."""
        if not longest_first:
            return (-label.priority,)
        return -label.priority, first[0].bit_length(), -(label.length or math.inf)

    def _give(self, job: Job, label: Label, ledger: Ledger) -> None:
        name, share = ledger.host.name, share_key(job)
        bit = self._yard.kind_of(name).bit
        self._queue.drop(job.id)
        self._queue.hold(share, bit, +1)
        self._held.append((share, bit))
        self.coming[job.id] = (name, label)
        ledger.expect(job)
        self._yard.put(ledger)
        self._earliest.clear()
        self._sated.pop(bit, None)

    def _choose(self, job: Job, label: Label) -> Ledger | None:
        """Hosts of a kind are compared as long as one could be better than the best so far: they
        are sorted by how long a device is busy there."""
        avoid = self._avoided(job, label)
        plain = not (avoid or label.leaves or label.cached)
        best: tuple[Key, Rank] | None = None
        latest: float | None = None
        few = self._closing.few
        for kind in self._yard.open_kinds(label.fit.kinds):
            if few and self._needs_none(kind):
                continue
            if latest is None:
                latest = self._latest_s(job, label, avoid)
            if label.bytes >= self._full.get(kind.bit, label.bytes + 1):
                continue
            refused: set[Reason] = set()
            taken = 0
            for rank in kind.open:
                least = self._least(job, kind, rank)
                if least[-1] > latest or (best is not None and least > best[0]):
                    break
                ledger = self._ledgers[rank[-1]]
                if few and ledger.has_enough:
                    refused.add(Reason.SLOT_BUSY)
                    continue
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
            else:
                if plain and not taken and refused == {Reason.DISK_LOW}:
                    self._full[kind.bit] = label.bytes
        for rank in self._with_inputs(label):
            ledger = self._ledgers[rank[-1]]
            if self._refuse(job, label, ledger, avoid) is None:
                offer = self._key(job, ledger, rank), rank
                best = offer if best is None or offer < best else best
        return self._ledgers[best[1][-1]] if best is not None else None

    def _needs_none(self, kind: HostKind) -> bool:
        """Whether all hosts of the kind that have room have enough to keep busy."""
        known = self._sated.get(kind.bit)
        if known is None:
            known = all(self._ledgers[rank[-1]].has_enough for rank in kind.open)
            self._sated[kind.bit] = known
        return known

    def _latest_s(self, job: Job, label: Label, avoid: frozenset[str]) -> float:
        """By when the job must be done for a host to be worth taking: when the best of all hosts,
        with room or not, would be done with it, or the farm with the whole queue."""
        if self._policy.order != "earliest_finish" or not label.length:
            return math.inf
        queue_s = self._closing.ends_s(label.fit.devices or frozenset())
        if queue_s == math.inf:
            return queue_s
        asked = (label.fit, self._policy.work(job), job.stage)
        plain = not (avoid or label.leaves or label.cached)
        earliest = self._earliest.get(asked) if plain else None
        if earliest is None:
            earliest = self._earliest_s(job, label, avoid)
            if plain:
                self._earliest[asked] = earliest
        return max(earliest, queue_s)

    def _earliest_s(self, job: Job, label: Label, avoid: frozenset[str]) -> float:
        earliest = math.inf
        for kind in self._yard.kinds_in(label.fit.kinds):
            for rank in kind.every[:LOOKED_AT]:
                if self._least(job, kind, rank)[-1] >= earliest:
                    break
                ledger = self._ledgers[rank[-1]]
                if ledger.host.gpus and self._refuse(job, label, ledger, avoid) is None:
                    earliest = min(earliest, self._key(job, ledger, rank)[-1])
        return earliest

    def _least(self, job: Job, kind: HostKind, rank: Rank) -> Key:
        """No host of the kind from this one on has a smaller key."""
        ahead = self._yard.ahead(kind, job)
        helper = float(not kind.devices and device_stage(job) is not None)
        if self._policy.order != "earliest_finish":
            return (helper,)
        return helper, max(ahead.lead_s, rank[0]) + ahead.device_s

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
            ahead = self._yard.ahead(self._yard.kind_of(host.name), job)
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
                has, missing = ledger.open_disk(), self._missing(label, ledger)
                # Few hosts lack disk; to ask each for all of its reasons costs more.
                if has >= missing or rank[-1] in self._kept or ledger.idle_disk() < missing:
                    continue
                refusal = self._refuse(job, label, ledger, avoid)
                if refusal is not None and refusal[0] is Reason.DISK_LOW:
                    roomy.append((has, rank[-1]))
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
            or self._enough(ledger)
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

    def _enough(self, ledger: Ledger) -> Refusal | None:
        if not (self._closing.few and ledger.has_enough):
            return None
        return Reason.SLOT_BUSY, "has enough to keep busy: the last jobs go where they start first"
