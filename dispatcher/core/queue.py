"""Jobs that wait for a host, sorted so that the next one is found without a look at the others.

Pure. A shelf has the jobs that the same hosts can take: if its first job finds none, no other of
them does. On a shelf stand lines, one for each acquisition and kind of job, oldest job first; the
line with the smallest share comes first.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from dispatcher.core.model import Job
from dispatcher.core.policy import share_key
from dispatcher.core.yard import Asked, Device, Fit

Age = tuple[float, str]
Share = tuple[str, str]
Place = tuple[int, float, str]  # share, then age


@dataclass(frozen=True, slots=True)
class Label:
    """What the jobs of a shelf have in common."""

    priority: int
    fit: Fit
    bytes: int  # what must fit on the disk
    avoid: frozenset[str]
    length: int  # until their stage on a device has ended, as in `Asked`; 0: not known
    leaves: str | None  # the host they have and are to be moved away from
    cached: tuple[str, ...]  # the one job, and the hosts that have some of its inputs already


@dataclass(slots=True, eq=False)
class Shelf:
    label: Label
    lines: dict[Share, list[Age]] = field(default_factory=dict)
    # A heap of lines. Of each line one entry counts, of its first job with its share in `shares`;
    # that is its share now or, until it comes up, a smaller one: see Queue.first.
    order: list[tuple[int, float, str, Share]] = field(default_factory=list)
    shares: dict[Share, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[str]:
        return (job for line in self.lines.values() for _, job in line)


class Queue:
    def __init__(self) -> None:
        self.shelves: dict[Label, Shelf] = {}
        self._at: dict[str, tuple[Shelf, Share, Age]] = {}
        self._work: dict[str, Hashable] = {}
        self._asked: dict[Hashable, Asked] = {}  # by work
        self._alike: dict[Hashable, dict[str, None]] = {}  # work -> jobs
        self.work_ms: Counter[Device] = Counter()  # of all jobs that it could hold, if it did all
        self.jobs: Counter[Device] = Counter()  # how many these are
        self._held: dict[Share, Counter[int]] = defaultdict(Counter)  # jobs by kind of host
        self._standing: dict[Share, set[Shelf]] = defaultdict(set)  # shelves with such a line
        # Since `settle`: by how much shares moved, and which of their lines got an entry.
        self._moved: dict[Share, Counter[int]] = defaultdict(Counter)
        self._entered: list[tuple[Shelf, Share]] = []

    def __contains__(self, job: str) -> bool:
        return job in self._at

    def __len__(self) -> int:
        return len(self._at)

    def label_of(self, job: str) -> Label:
        return self._at[job][0].label

    def put(
        self,
        job: Job,
        asked: Asked,
        leaves: str | None,
        cached: tuple[str, ...],
    ) -> None:
        """Where jobs of its work are here, it stands with them until they all `ask` anew."""
        self.drop(job.id)
        work = asked.work
        self._work[job.id] = work
        self._alike.setdefault(work, {})[job.id] = None
        asked = self._asked.setdefault(work, asked)
        self._count(asked, +1)
        label = Label(
            priority=job.priority,
            fit=asked.fit,
            bytes=asked.disk_bytes,
            avoid=frozenset(job.avoid_hosts),
            length=asked.length,
            leaves=leaves,
            cached=(job.id, *cached) if cached else (),
        )
        shelf = self.shelves.get(label)
        if shelf is None:
            shelf = self.shelves[label] = Shelf(label)
        share, age = share_key(job), (job.created_at, job.id)
        line = shelf.lines.setdefault(share, [])
        insort(line, age)
        self._at[job.id] = (shelf, share, age)
        self._standing[share].add(shelf)
        if line[0] == age:
            self._enter(shelf, share)

    def drop(self, job: str) -> None:
        found = self._at.pop(job, None)
        if found is None:
            return
        work = self._work.pop(job)
        self._count(self._asked[work], -1)
        del self._alike[work][job]
        if not self._alike[work]:
            del self._alike[work], self._asked[work]
        shelf, share, age = found
        line = shelf.lines[share]
        position = bisect_left(line, age)
        del line[position]
        if not line:
            self._leave(shelf, share)
        elif position == 0:
            self._enter(shelf, share)

    @property
    def works(self) -> list[Hashable]:
        return [*self._alike]

    def some_of(self, work: Hashable) -> tuple[str, int] | None:
        """One job of this work, and how many there are; None: none is left."""
        jobs = self._alike.get(work)
        return (next(iter(jobs)), len(jobs)) if jobs else None

    def ask(self, asked: Asked) -> list[tuple[str, str | None]]:
        """Jobs of this work ask for something else now. Those that stand wrong by it are dropped,
        and returned with the host that they leave."""
        known = self._asked[asked.work]
        stand = (known.fit, known.length, known.disk_bytes)
        if stand != (asked.fit, asked.length, asked.disk_bytes):
            moved = [(job, self.label_of(job).leaves) for job in self._alike[asked.work]]
            for job, _ in moved:
                self.drop(job)
            return moved
        jobs = len(self._alike[asked.work])
        self._count(known, -jobs)
        self._count(asked, jobs)
        self._asked[asked.work] = asked
        return []

    def _count(self, asked: Asked, jobs: int) -> None:
        for device, spent in asked.device_ms.items():
            self.work_ms[device] += jobs * spent
            self.jobs[device] += jobs

    def first(self, label: Label) -> Place:
        """The next job of a shelf; `settle` comes before."""
        shelf = self.shelves[label]
        while True:
            count, created, job, share = shelf.order[0]
            line = shelf.lines.get(share)
            if line is None or line[0] != (created, job) or shelf.shares[share] != count:
                heapq.heappop(shelf.order)
                continue
            grown = self._share(share, label.fit.kinds)
            if grown == count:
                return count, created, job
            shelf.shares[share] = grown
            heapq.heapreplace(shelf.order, (grown, created, job, share))
            self._entered.append((shelf, share))

    def _enter(self, shelf: Shelf, share: Share) -> None:
        """The line got another head, or another share."""
        count = self._share(share, shelf.label.fit.kinds)
        shelf.shares[share] = count
        heapq.heappush(shelf.order, (count, *shelf.lines[share][0], share))
        if len(shelf.order) > 2 * len(shelf.lines) + 16:  # most entries count no more
            shelf.order = [(shelf.shares[s], *line[0], s) for s, line in shelf.lines.items()]
            heapq.heapify(shelf.order)
        if share in self._moved:
            self._entered.append((shelf, share))

    def _leave(self, shelf: Shelf, share: Share) -> None:
        """The line's last job went."""
        del shelf.lines[share], shelf.shares[share]
        self._standing[share].discard(shelf)
        if not self._standing[share]:
            del self._standing[share]
        if not shelf.lines:
            del self.shelves[shelf.label]

    def _share(self, share: Share, kinds: int) -> int:
        count = 0
        for bit, jobs in self._held[share].items() if share in self._held else ():
            if kinds >> bit & 1:
                count += jobs
        return count

    def hold(self, share: Share, kind: int, change: int) -> None:
        """So many more (or fewer) jobs of the share have a host of this kind. What is taken back
        and told again at once moves no line: see `settle`."""
        held = self._held[share]
        held[kind] += change
        if not held[kind]:
            del held[kind]
            if not held:
                del self._held[share]
        self._moved[share][kind] += change

    def settle(self) -> None:
        """Lines whose share became smaller come forward; those whose share grew, when they are
        `first`."""
        doubtful = self._entered
        for share, moved in self._moved.items():
            if min(moved.values()) < 0:
                doubtful += ((shelf, share) for shelf in self._standing.get(share, ()))
        self._moved.clear()
        self._entered = []
        for shelf, share in doubtful:
            if self._share(share, shelf.label.fit.kinds) < shelf.shares.get(share, 0):
                self._enter(shelf, share)
