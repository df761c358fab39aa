"""The hosts that can take a job now, sorted, by kind: hosts with the same hardware.

Pure. Whether a kind of host could hold a kind of job is asked once; a job is offered to the first
hosts of each kind only.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from dispatcher.core.ledger import Ledger
from dispatcher.core.model import Job
from dispatcher.core.policy import Ahead, Policy, device_stage
from dispatcher.core.views import GpuView, HostView

Rank = tuple[float, float, int, str]
Device = tuple[str, str, int, int]  # model, kind, MiB, headroom


@dataclass(frozen=True, slots=True)
class Fit:
    """Who could hold a job if nothing else was there: a mask of kinds of host, and the devices
    (None: it needs none)."""

    kinds: int
    devices: frozenset[Device] | None


@dataclass(frozen=True, slots=True)
class Asked:
    """What all jobs of equal work and stage ask of the farm."""

    work: Hashable
    fit: Fit
    device_ms: Mapping[Device, int]  # that could hold it; none where seconds are only guessed
    # Until the fastest of these is done with it, had it nothing else to do: milliseconds in quarter
    # octaves; 0: not known.
    length: int
    disk_bytes: int  # of a host that has nothing of it yet


@dataclass(slots=True, eq=False)
class HostKind:
    """`bit`: its place in a mask of kinds."""

    key: Hashable
    bit: int
    like: Ledger  # an empty one
    devices: tuple[Device, ...]
    hosts: set[str] = field(default_factory=set)
    up: set[str] = field(default_factory=set)  # to which jobs could be given, had they room
    # Of these with a device that may be used, or that have none, whether they have room or not.
    every: list[Rank] = field(default_factory=list)
    open: list[Rank] = field(default_factory=list)  # to which jobs can be given now
    ahead: dict[Hashable, Ahead] = field(default_factory=dict)  # of jobs here, by work and stage


@dataclass(slots=True)
class _Seat:
    kind: HostKind
    view: HostView
    rank: Rank | None = None
    counts: bool = False  # in `every`
    open: bool = False


class Yard:
    """`version` grows when kinds come or go: fits are to be asked for again."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.kinds: dict[int, HostKind] = {}  # by bit
        self._by_key: dict[Hashable, HostKind] = {}
        self._seats: dict[str, _Seat] = {}
        self._asked: dict[Hashable, Asked] = {}
        self._devices: dict[Device, GpuView] = {}  # one of each kind
        self.open_mask = 0
        self.version = 0

    def kind_of(self, host: str) -> HostKind:
        return self._seats[host].kind

    def rank_of(self, host: str) -> Rank:
        rank = self._seats[host].rank
        return rank if rank is not None else (math.inf, 0.0, 0, host)

    def put(self, ledger: Ledger) -> None:
        """What changed of the host, or of the jobs it has."""
        name = ledger.host.name
        seat = self._seats.get(name)
        if seat is None or seat.view is not ledger.host:
            key = _key(ledger)
            if seat is None or seat.kind.key != key:
                self.drop(name)
                seat = self._seats[name] = _Seat(self._kind(key, ledger), ledger.host)
                seat.kind.hosts.add(name)
            seat.view = ledger.host
        kind = seat.kind
        shut = ledger.shut(assigning=True) is not None
        (kind.up.discard if shut else kind.up.add)(name)
        gpus = ledger.host.gpus
        rank = None if shut else self._rank(ledger)
        # Without a device that may be used it still takes what needs none, as a stitch.
        counts = not shut and (not gpus or any(map(ledger.usable, gpus)))
        is_open = not shut and ledger.room() is None
        if (rank, counts, is_open) != (seat.rank, seat.counts, seat.open):
            self._unrank(seat)
            if rank is not None and counts:
                insort(kind.every, rank)
            if rank is not None and is_open:
                insort(kind.open, rank)
                self.open_mask |= 1 << kind.bit
            seat.rank, seat.counts, seat.open = rank, counts, is_open

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
            self._changed()

    def _unrank(self, seat: _Seat) -> None:
        if seat.rank is not None and seat.counts:
            del seat.kind.every[bisect_left(seat.kind.every, seat.rank)]
        if seat.rank is not None and seat.open:
            del seat.kind.open[bisect_left(seat.kind.open, seat.rank)]
            if not seat.kind.open:
                self.open_mask &= ~(1 << seat.kind.bit)
        seat.rank, seat.counts, seat.open = None, False, False

    def _kind(self, key: Hashable, ledger: Ledger) -> HostKind:
        kind = self._by_key.get(key)
        if kind is None:
            bit = next(n for n in range(len(self.kinds) + 1) if n not in self.kinds)
            sound = (replace(g, quarantine=None, probe_age_s=0.0) for g in ledger.host.gpus)
            like = Ledger(replace(ledger.host, gpus=tuple(sound)), self._policy)
            kind = self.kinds[bit] = self._by_key[key] = HostKind(
                key=key, bit=bit, like=like, devices=_devices(like)
            )
            self._changed()
        return kind

    def _changed(self) -> None:
        self._asked.clear()
        self._devices.clear()
        for kind in self.kinds.values():
            self._devices.update(zip(kind.devices, kind.like.host.gpus, strict=True))
        self.version += 1

    def _rank(self, ledger: Ledger) -> Rank:
        """Idle before busy, then by free memory, where seconds do not tell busy hosts apart."""
        earliest = self._policy.order == "earliest_finish"
        before = ledger.wait_s if earliest else float(ledger.busy_rounds)
        free = 0 if earliest and before else ledger.roomiest_mib
        return before, -free, len(ledger.residents), ledger.host.name

    def learn(self, policy: Policy) -> None:
        """Other needs; hosts are to be put again."""
        self._policy = policy
        for kind in self.kinds.values():
            kind.like.learn(policy)
            kind.ahead.clear()
        self._changed()

    def asked(self, job: Job) -> Asked:
        work = (self._policy.work(job), job.stage)
        known = self._asked.get(work)
        if known is None:
            fit = self._fit(job)
            device_ms = self._device_ms(job, fit)
            known = self._asked[work] = Asked(
                work=work,
                fit=fit,
                device_ms=device_ms,
                length=self._length(job, device_ms),
                disk_bytes=self._policy.disk_need(job),
            )
        return known

    def _fit(self, job: Job) -> Fit:
        holding = without_gpu = 0
        devices: set[Device] = set()
        for bit, kind in self.kinds.items():
            like = kind.like
            if not like.host.gpus:
                without_gpu |= (like.small_ram(job) is None) << bit
                continue
            holding |= like.capable(job) << bit
            pairs = zip(kind.devices, like.host.gpus, strict=True)
            devices.update(device for device, gpu in pairs if like.holds(gpu, job))
        stage = device_stage(job)
        # What stages made moves along, so that a host without a GPU can take those before the one
        # that needs it, as long as another host can take the rest. A stitch needs none at all.
        if stage is None or (holding and job.stage is not stage):
            holding |= without_gpu
        return Fit(holding, None if stage is None else frozenset(devices))

    def ahead(self, kind: HostKind, job: Job) -> Ahead:
        work = (self._policy.work(job), job.stage)
        known = kind.ahead.get(work)
        if known is None:
            known = kind.ahead[work] = self._policy.ahead(job, kind.like.host.gpus)
        return known

    def _device_ms(self, job: Job, fit: Fit) -> dict[Device, int]:
        stage = device_stage(job)
        needs = {
            device: self._policy.need(job, self._devices[device], stage)
            for device in fit.devices or ()
        }
        if not all(need.runs for need in needs.values()):
            return {}
        return {device: round(1000 * need.seconds.likely) for device, need in needs.items()}

    def _length(self, job: Job, device_ms: Mapping[Device, int]) -> int:
        if not device_ms:
            return 0
        fastest = min(device_ms, key=lambda device: device_ms[device])
        lead_s = self._policy.ahead(job, (self._devices[fastest],)).lead_s
        return round(4 * math.log2(max(2.0, device_ms[fastest] + 1000 * lead_s)))

    def kinds_in(self, mask: int) -> Iterator[HostKind]:
        for bit, kind in self.kinds.items():
            if mask >> bit & 1:
                yield kind

    def open_kinds(self, mask: int) -> Iterator[HostKind]:
        mask &= self.open_mask
        while mask:
            yield self.kinds[(mask & -mask).bit_length() - 1]
            mask &= mask - 1


def _devices(ledger: Ledger) -> tuple[Device, ...]:
    headroom = ledger.host.headroom_mib
    return tuple((gpu.name, gpu.kind, gpu.total_mib, headroom) for gpu in ledger.host.gpus)


def _key(ledger: Ledger) -> Hashable:
    return tuple(sorted(_devices(ledger))), ledger.host.headroom_mib, ledger.usable_ram_mib
