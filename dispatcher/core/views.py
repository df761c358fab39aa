"""Hosts and devices as placement sees them: frozen data."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from dispatcher.core.model import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """Failures made a host or a GPU suspect; nothing starts there before a self-test passed."""

    line: str  # since when, why, until when, what lifts it
    failed_test: bool = False  # proven unfit: what waits there goes elsewhere
    silent: bool = False  # a GPU that does not answer: no command lifts that


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuView:
    """One device as placement sees it; own use is by attempt, so that it is counted once."""

    uuid: str
    name: str
    kind: str  # "cuda" | "cpu"
    total_mib: int
    free_mib: int
    own_mib: dict[tuple[str, int], int] = field(default_factory=dict)  # (job, attempt) -> MiB used
    foreign_mib: int = 0
    holders: tuple[tuple[str, int], ...] = ()  # (whose, MiB) of foreign_mib, the largest first
    decode_sessions: int = 0  # foreign ones that use its video decoder now
    max_decode_sessions: int = 0  # 0: it has no video decoder
    probe_age_s: float = 0.0  # of these figures; a stale one stops placement on this GPU only
    quarantine: Quarantine | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """One host as placement sees it."""

    name: str
    reachable: bool
    unreachable_reason: Reason | None = None
    unreachable_message: str = ""
    silent_s: float = 0.0  # unreachable for so long
    cordoned: bool = False
    cordoned_in_inventory: bool = False  # no command lifts that
    draining: bool = False  # what waits there goes elsewhere
    quarantine: Quarantine | None = None
    ready: bool = True  # stage dependencies are there
    not_ready_message: str = ""
    gpus: tuple[GpuView, ...] = ()
    gpu_error: str = ""  # why some GPU, or all of them, cannot be read there
    max_parallel: dict[str, int] = field(default_factory=dict)  # slot -> attempts at once
    headroom_mib: int = 0
    cpu_cores: int = 0  # 0: not known, not limited
    ram_total_mib: int = 0  # 0: not known, not limited
    ram_free_mib: int = 0
    ram_own_mib: dict[tuple[str, int], int] = field(default_factory=dict)  # (job, attempt) -> used
    link_bytes_s: float = 0.0  # measured towards it; 0: never measured
    disk_total_bytes: int = 0  # 0: not known
    disk_free_bytes: int = 0
    disk_reserve_bytes: int = 0
    # Why the storage below its disk lets nothing new in; None: it does.
    storage: tuple[Reason, str] | None = None
    probe_age_s: float = 0.0
    cached_bytes: dict[str, int] = field(default_factory=dict)  # job -> input bytes already there


def released(host: HostView, ended: Collection[tuple[str, int]]) -> HostView:
    """The host without the memory that these attempts (job, attempt) were last seen to use: they
    have ended since."""

    def without(own: dict[tuple[str, int], int]) -> tuple[int, dict[tuple[str, int], int]]:
        left = {key: mib for key, mib in own.items() if key not in ended}
        return sum(own.values()) - sum(left.values()), left

    gpus = []
    for gpu in host.gpus:
        freed, own = without(gpu.own_mib)
        gpus.append(replace(gpu, free_mib=gpu.free_mib + freed, own_mib=own) if freed else gpu)
    freed, own = without(host.ram_own_mib)
    if not freed and all(map(operator.is_, gpus, host.gpus)):
        return host
    return replace(host, gpus=tuple(gpus), ram_free_mib=host.ram_free_mib + freed, ram_own_mib=own)


def fresh(host: HostView, stale_s: float) -> HostView:
    """The host with no ages but those of figures older than `stale_s`: equal ones are decided on
    alike."""
    gpus = tuple(
        replace(gpu, probe_age_s=0.0) if 0.0 < gpu.probe_age_s <= stale_s else gpu
        for gpu in host.gpus
    )
    age_s = 0.0 if host.probe_age_s <= stale_s else host.probe_age_s
    if age_s == host.probe_age_s and gpus == host.gpus:
        return host
    return replace(host, gpus=gpus, probe_age_s=age_s)
