"""Which of the jobs without a host get one now. Pure; works on a board's queue and yard.

Order: priority, then the acquisition and kind with the smallest share of the hosts that could take
the job, then age. Counted on those hosts only, a job that few hosts can hold does not stand back
behind those that could go anywhere, and neither stitches nor segments starve. A group of jobs of
equal need that finds no host is left for this decision, and never blocks the others; but one that
has waited for longer than the policy's patience keeps the disk of a host that only lacks disk.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping

from dispatcher.core.ledger import Ledger, Refusal
from dispatcher.core.model import Job, Reason
from dispatcher.core.policy import Policy, device_stage, rounded_up
from dispatcher.core.queue import Group, Queue
from dispatcher.core.starting import share_key
from dispatcher.core.yard import Rank, Yard

Key = tuple[float, ...]
Held = Mapping[tuple[str, str], Counter[int]]  # acquisition and kind -> jobs by kind of host


class Assigner:
    def __init__(
        self,
        policy: Policy,
        yard: Yard,
        queue: Queue,
        ledgers: Mapping[str, Ledger],
        held: Held,
    ) -> None:
        self._policy = policy
        self._yard = yard
        self._queue = queue
        self._ledgers = ledgers
        self._held = held
        self._added: Counter[tuple[tuple[str, str], int]] = Counter()
        self._full: dict[int, int] = {}  # kind of host -> fewest bytes that none of them can take
        self._kept: dict[str, str] = {}  # host -> old job that its disk is kept for
        self.coming: dict[str, str] = {}  # job -> host

    def undo(self) -> set[str]:
        """Take back the last decision; what came of it is told as jobs. Returns its hosts."""
        touched = set(self.coming.values())
        for job, host in self.coming.items():
            if host in self._ledgers:
                self._ledgers[host].coming.pop(job, None)
        for (share, bit), count in self._added.items():
            self._held[share][bit] -= count
        self.coming.clear()
        self._added.clear()
        self._full.clear()
        self._kept.clear()
        return touched

    def assign(self, jobs: Mapping[str, Job], now: float) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for groups in self._queue.levels():
            if self._yard.open_mask:
                self._level(groups, jobs, now, found)
        return found

    def _level(
        self,
        groups: list[Group],
        jobs: Mapping[str, Job],
        now: float,
        found: list[tuple[str, str]],
    ) -> None:
        yard = self._yard
        heap: list[tuple[int, float, str, int, Group]] = []
        shares: dict[tuple[tuple[str, str], int], int] = {}
        for group in groups:
            mask = yard.masks(group.like)[0]
            if mask & yard.open_mask:
                key = share_key(group.like), mask
                if key not in shares:
                    shares[key] = self._share(*key)
                heap.append((shares[key], *group.jobs[0], 0, group))
        heapq.heapify(heap)
        while heap and yard.open_mask:
            share, created_at, name, position, group = heapq.heappop(heap)
            mask = yard.masks(group.like)[0]
            if not mask & yard.open_mask:
                continue
            grown = self._share(share_key(group.like), mask)
            if grown != share:
                heapq.heappush(heap, (grown, created_at, name, position, group))
                continue
            job = jobs[name]
            ledger = self._choose(group, mask)
            if ledger is None:  # nor would the rest of the group find one
                if created_at + self._policy.patience_s <= now:
                    self._keep_disk(group, mask)
                continue
            self._give(job, ledger)
            found.append((name, ledger.host.name))
            if position + 1 < len(group.jobs):
                heapq.heappush(heap, (grown, *group.jobs[position + 1], position + 1, group))

    def _share(self, share: tuple[str, str], mask: int) -> int:
        return sum(n for bit, n in self._held[share].items() if mask >> bit & 1)

    def _give(self, job: Job, ledger: Ledger) -> None:
        bit = self._yard.kind_of(ledger.host.name).bit
        self._held[share_key(job)][bit] += 1
        self._added[share_key(job), bit] += 1
        self.coming[job.id] = ledger.host.name
        ledger.coming[job.id] = job
        self._yard.put(ledger)

    def _choose(self, group: Group, mask: int) -> Ledger | None:
        job = group.like
        bytes_needed = rounded_up(job.input_bytes)
        avoid = self._avoided(group)
        plain = not (avoid or group.leaves or group.cached)
        best: tuple[Key, Rank] | None = None
        for kind in self._yard.open_kinds(mask):
            if bytes_needed >= self._full.get(kind.bit, bytes_needed + 1):
                continue
            refused: set[Reason | None] = set()
            for rank in kind.open:
                refusal = self._refuse(group, self._ledgers[rank[-1]], avoid)
                if refusal is None:
                    offer = self._key(job, self._ledgers[rank[-1]], rank), rank
                    best = offer if best is None or offer < best else best
                    break
                refused.add(refusal[0])
            else:
                if plain and refused == {Reason.DISK_LOW}:
                    self._full[kind.bit] = bytes_needed
        for rank in self._with_inputs(group, mask):
            ledger = self._ledgers[rank[-1]]
            if self._refuse(group, ledger, avoid) is None:
                offer = self._key(job, ledger, rank), rank
                best = offer if best is None or offer < best else best
        return self._ledgers[best[1][-1]] if best is not None else None

    def _with_inputs(self, group: Group, mask: int) -> list[Rank]:
        """Open hosts that have some of the job's bytes, wherever they stand in their order."""
        names = set(group.cached)
        return [
            rank
            for kind in (self._yard.open_kinds(mask) if names else ())
            for rank in kind.open
            if rank[-1] in names
        ]

    def _refuse(self, group: Group, ledger: Ledger, avoid: frozenset[str]) -> Refusal | None:
        """Of an open host of a kind that can hold the job."""
        name = ledger.host.name
        if name == group.leaves:
            return Reason.SLOT_BUSY, "is to be left"
        if name in avoid:
            return Reason.SLOT_BUSY, "failed this job before"
        holder = self._kept.get(name)
        if holder is not None:
            return Reason.DISK_LOW, f"its disk is kept for {holder}, which has waited for long"
        return ledger.full_disk(self.missing(group, ledger)) or ledger.small_ram(group.like)

    def missing(self, group: Group, ledger: Ledger) -> int:
        there = ledger.host.cached_bytes.get(group.like.id, 0) if group.cached else 0
        return max(0, rounded_up(group.like.input_bytes) - there)

    def _avoided(self, group: Group) -> frozenset[str]:
        """Hosts that failed the job are taken only when no other could ever take it."""
        avoid = frozenset(group.like.avoid_hosts)
        return avoid if avoid and self.others(group) else frozenset()

    def others(self, group: Group) -> list[str]:
        """Hosts that could take the jobs some time, without those that failed them."""
        ever = self._yard.masks(group.like)[1]
        apart = {*group.like.avoid_hosts, group.leaves}
        return sorted(
            name
            for bit, kind in self._yard.kinds.items()
            if ever >> bit & 1
            for name in kind.up
            if name not in apart
        )

    def _key(self, job: Job, ledger: Ledger, rank: Rank) -> Key:
        """The smallest is chosen; among hosts of one kind it grows with their rank."""
        host, order = ledger.host, self._policy.order
        helper = float(not host.gpus)  # only where no host with a GPU has room
        if order == "earliest_finish":
            ahead = self._policy.ahead(job, host.gpus)
            link = host.link_bytes_s or self._policy.link_bytes_s
            there = ledger.bytes_missing(job) / link + ahead.lead_s
            return helper, max(there, rank[0]) + ahead.device_s
        if order == "best_fit":
            stage = device_stage(job)
            sizes = [gpu.total_mib for gpu in host.gpus if stage is None or ledger.holds(gpu, job)]
            return helper, rank[0], float(min(sizes, default=0))
        return (helper,)

    def _keep_disk(self, group: Group, mask: int) -> None:
        """Of the host that has the most, if what its jobs have there would make it enough."""
        roomy: list[tuple[int, str]] = []
        for kind in self._yard.open_kinds(mask):
            for rank in kind.open:
                ledger = self._ledgers[rank[-1]]
                refusal = self._refuse(group, ledger, self._avoided(group))
                if refusal is None or refusal[0] is not Reason.DISK_LOW or rank[-1] in self._kept:
                    continue
                theirs = sum(job.input_bytes for job in ledger.residents.values())
                if ledger.free_disk() + theirs >= self.missing(group, ledger):
                    roomy.append((ledger.free_disk(), rank[-1]))
        if roomy:
            self._kept[max(roomy)[1]] = group.jobs[0][1]

    def refusal(self, group: Group, ledger: Ledger) -> Refusal:
        """Why the last decision did not give the group's jobs this host."""
        refusal = ledger.refuse(group.like, self.missing(group, ledger))
        if refusal is not None:
            return refusal
        return self._refuse(group, ledger, self._avoided(group)) or (
            Reason.SLOT_BUSY,
            "is free; the next decision is due",
        )
