"""The hosts that can take a job now, sorted, by kind: hosts that can hold the same jobs.

Pure. Whether a kind of host holds a kind of job is asked once; among hosts of one kind the order
is the same for every job, so that a job is offered to the first of each kind only.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace

from dispatcher.core.ledger import Ledger
from dispatcher.core.model import Job
from dispatcher.core.policy import Policy, device_stage, rounded_up, work

Rank = tuple[float, float, int, str]


@dataclass(slots=True, eq=False)
class HostKind:
    """`bit`: its place in a mask of kinds."""

    key: Hashable
    bit: int
    like: Ledger  # an empty one, with as much RAM as any of them has
    hosts: set[str] = field(default_factory=set)
    up: set[str] = field(default_factory=set)  # to which jobs could be given, had they room
    open: list[Rank] = field(default_factory=list)  # to which jobs can be given now


@dataclass(slots=True)
class _Seat:
    kind: HostKind
    rank: Rank | None = None


class Yard:
    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.kinds: dict[int, HostKind] = {}  # by bit
        self._by_key: dict[Hashable, HostKind] = {}
        self._seats: dict[str, _Seat] = {}
        self._masks: dict[Hashable, tuple[int, int]] = {}
        self.open_mask = 0

    def kind_of(self, host: str) -> HostKind:
        return self._seats[host].kind

    def put(self, ledger: Ledger) -> None:
        """What changed of the host, or of the jobs it has."""
        name = ledger.host.name
        seat = self._seats.get(name)
        key = self._key(ledger)
        if seat is None or seat.kind.key != key:
            self.drop(name)
            seat = self._seats[name] = _Seat(self._kind(key, ledger))
            seat.kind.hosts.add(name)
        kind = seat.kind
        shut = ledger.shut(assigning=True) is not None
        (kind.up.discard if shut else kind.up.add)(name)
        rank = None if shut or ledger.room() is not None else self._rank(ledger)
        if rank != seat.rank:
            self._unrank(seat)
            if rank is not None:
                insort(kind.open, rank)
                self.open_mask |= 1 << kind.bit
            seat.rank = rank

    def drop(self, host: str) -> None:
        seat = self._seats.pop(host, None)
        if seat is None:
            return
        self._unrank(seat)
        kind = seat.kind
        kind.hosts.discard(host)
        kind.up.discard(host)
        if not kind.hosts:
            del self.kinds[kind.bit], self._by_key[kind.key]
            self._masks.clear()

    def _unrank(self, seat: _Seat) -> None:
        if seat.rank is not None:
            ranks = seat.kind.open
            del ranks[bisect_left(ranks, seat.rank)]
            if not ranks:
                self.open_mask &= ~(1 << seat.kind.bit)
            seat.rank = None

    def _kind(self, key: Hashable, ledger: Ledger) -> HostKind:
        kind = self._by_key.get(key)
        if kind is None:
            bit = next(n for n in range(len(self.kinds) + 1) if n not in self.kinds)
            most = replace(ledger.host, ram_total_mib=rounded_up(ledger.host.ram_total_mib))
            kind = HostKind(key=key, bit=bit, like=Ledger(most, self._policy))
            self.kinds[bit] = self._by_key[key] = kind
            self._masks.clear()
        return kind

    def _key(self, ledger: Ledger) -> Hashable:
        host = ledger.host
        devices = sorted(
            (
                gpu.name,
                gpu.kind,
                gpu.total_mib,
                ledger.usable(gpu),
                gpu.quarantine is not None and gpu.quarantine.failed_test,
            )
            for gpu in host.gpus
        )
        return (
            tuple(devices),
            host.headroom_mib,
            rounded_up(host.ram_total_mib),
            rounded_up(int(host.link_bytes_s)),
        )

    def _rank(self, ledger: Ledger) -> Rank:
        """Idle before busy, then by free memory."""
        earliest = self._policy.order == "earliest_finish"
        before = ledger.wait_s if earliest else float(ledger.busy_rounds)
        return before, -ledger.roomiest_mib, len(ledger.residents), ledger.host.name

    def masks(self, job: Job) -> tuple[int, int]:
        """The kinds of host that can take this kind of job now, and those that ever could."""
        key = (work(job), job.stage)
        known = self._masks.get(key)
        if known is None:
            now = ever = without_gpu = 0
            for bit, kind in self.kinds.items():
                if not kind.like.host.gpus:
                    without_gpu |= (kind.like.small_ram(job) is None) << bit
                elif kind.like.capable(job):
                    ever |= 1 << bit
                    now |= (kind.like.suspect(job) is None) << bit
            # What stages made moves along, so that a host without a GPU can take those before the
            # one that needs it, as long as another host can take the rest.
            if ever and job.stage is not device_stage(job):
                now, ever = now | without_gpu, ever | without_gpu
            known = self._masks[key] = now, ever
        return known

    def open_kinds(self, mask: int) -> Iterator[HostKind]:
        mask &= self.open_mask
        while mask:
            bit = (mask & -mask).bit_length() - 1
            yield self.kinds[bit]
            mask &= mask - 1
