"""What if: a change of the farm in a few words, applied to a snapshot. Pure.

add host with [Kx]N GiB [like HOST]     a host with K (default 1) GPUs of N GiB, otherwise like
                                        HOST (default: the one whose GPU is nearest in size)
remove host HOST                        as if it left the inventory
cordon HOST | drain HOST | resume HOST  as the `cosma worker` commands of these names
priority JOB N                          as `cosma job priority JOB N`
free N MiB|GiB on GPU                   others give back N of what they use there; GPU is a UUID,
                                        the beginning of one, or the name of a host with one GPU
free N MiB|GiB of disk on HOST          as much less lies on its disk
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dispatcher.core.model import MOST_PRIORITY, SETTLED, JobState
from dispatcher.core.snapshot import Snapshot
from dispatcher.core.views import GpuView, HostView

GRAMMAR = (
    "add host with [Kx]N GiB [like HOST]",
    "remove host HOST",
    "cordon HOST",
    "drain HOST",
    "resume HOST",
    "priority JOB N",
    "free N MiB|GiB on GPU",
    "free N MiB|GiB of disk on HOST",
)
EMPTY_DISK_BYTES = 1 << 40  # of a new host where no host is known that it could be like


class WhatIfError(ValueError):
    """The words are none of GRAMMAR, or name what the snapshot does not have. One line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddHost:
    mib: int  # of each GPU
    gpus: int = 1
    like: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveHost:
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cordon:
    host: str
    draining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    host: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Priority:
    job: str
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    mib: int
    gpu: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeDisk:
    mib: int
    host: str


Change = AddHost | RemoveHost | Cordon | Resume | Priority | Free | FreeDisk

_MIB = {"mib": 1, "gib": 1024}
_NAME = r"(\S+)"
_FORMS: tuple[tuple[str, Callable[[re.Match[str]], Change]], ...] = (
    (
        rf"add host with (?:(\d+) ?x ?)?(\d+(?:\.\d+)?) ?(gib)(?: like {_NAME})?",
        lambda found: AddHost(
            gpus=int(found[1] or 1), mib=round(float(found[2]) * 1024), like=found[4]
        ),
    ),
    (rf"remove host {_NAME}", lambda found: RemoveHost(host=found[1])),
    (rf"cordon {_NAME}", lambda found: Cordon(host=found[1])),
    (rf"drain {_NAME}", lambda found: Cordon(host=found[1], draining=True)),
    (rf"resume {_NAME}", lambda found: Resume(host=found[1])),
    (
        rf"priority {_NAME} ([+-]?\d+)",
        lambda found: Priority(job=found[1], priority=int(found[2])),
    ),
    (
        rf"free (\d+(?:\.\d+)?) ?(mib|gib) on {_NAME}",
        lambda found: Free(mib=_mib(found), gpu=found[3]),
    ),
    (
        rf"free (\d+(?:\.\d+)?) ?(mib|gib) of disk on {_NAME}",
        lambda found: FreeDisk(mib=_mib(found), host=found[3]),
    ),
)


def _mib(found: re.Match[str]) -> int:
    return round(float(found[1]) * _MIB[found[2].lower()])


def parse(text: str) -> Change:
    """Raises WhatIfError for words that are none of GRAMMAR."""
    words = " ".join(text.split())
    for form, make in _FORMS:
        if found := re.fullmatch(form, words, re.IGNORECASE):
            change = make(found)
            if isinstance(change, AddHost | Free | FreeDisk) and change.mib <= 0:
                raise WhatIfError(f"{text!r}: it must be more than nothing")
            if isinstance(change, Priority) and abs(change.priority) > MOST_PRIORITY:
                raise WhatIfError(
                    f"{text!r}: a priority lies between -{MOST_PRIORITY} and {MOST_PRIORITY}"
                )
            if isinstance(change, AddHost) and not 1 <= change.gpus <= 64:
                raise WhatIfError(f"{text!r}: a host has 1 to 64 GPUs")
            return change
    first = words.split(" ", 1)[0].lower()
    near = [form for form in GRAMMAR if form.startswith(first)] if first else []
    raise WhatIfError(f"{text!r} is not understood; expected: {' | '.join(near or GRAMMAR)}")


def apply(snapshot: Snapshot, change: Change) -> Snapshot:
    """The snapshot as it would be. Raises WhatIfError for a host, job or GPU it does not have."""
    match change:
        case AddHost():
            return dataclasses.replace(
                snapshot, hosts=(*snapshot.hosts, _new_host(snapshot, change))
            )
        case RemoveHost():
            gone = _host(snapshot, change.host)
            return dataclasses.replace(
                snapshot, hosts=tuple(h for h in snapshot.hosts if h is not gone)
            )
        case Cordon():
            host = _host(snapshot, change.host)
            return _with_host(
                snapshot, dataclasses.replace(host, cordoned=True, draining=change.draining)
            )
        case Resume():
            host = _host(snapshot, change.host)
            if host.cordoned_in_inventory:
                raise WhatIfError(
                    f"{host.name} stays cordoned: its entry in the inventory says `cordoned: true`"
                )
            return _with_host(snapshot, _resumed(host))
        case Priority():
            return _with_priority(snapshot, change)
        case Free():
            return _with_host(snapshot, _freed(snapshot, change))
        case FreeDisk():
            return _with_host(snapshot, _with_disk(_host(snapshot, change.host), change.mib))


def _resumed(host: HostView) -> HostView:
    """As `cosma worker resume`: cordon and drain end, breakers are reset."""
    return dataclasses.replace(
        host,
        cordoned=False,
        draining=False,
        quarantine=None,
        gpus=tuple(
            gpu
            if gpu.quarantine is None or gpu.quarantine.silent
            else dataclasses.replace(gpu, quarantine=None)
            for gpu in host.gpus
        ),
    )


def _with_priority(snapshot: Snapshot, change: Priority) -> Snapshot:
    names = [job.id for job in snapshot.jobs]
    if change.job not in names:
        raise WhatIfError(_unknown("job", change.job, names))
    job = next(job for job in snapshot.jobs if job.id == change.job)
    if job.state in SETTLED - {JobState.HELD}:
        raise WhatIfError(f"job {job.id} has ended already: it is {job.state}")
    raised = dataclasses.replace(job, priority=change.priority)
    return dataclasses.replace(
        snapshot, jobs=tuple(raised if j.id == job.id else j for j in snapshot.jobs)
    )


def _freed(snapshot: Snapshot, change: Free) -> HostView:
    host, gpu = _gpu(snapshot, change.gpu)
    if gpu.foreign_mib < change.mib:
        raise WhatIfError(
            f"{gpu.uuid} on {host.name}: others use {gpu.foreign_mib} MiB there, "
            f"{change.mib} MiB cannot be given back"
        )
    most = gpu.total_mib - sum(gpu.own_mib.values())
    freed = dataclasses.replace(
        gpu,
        foreign_mib=gpu.foreign_mib - change.mib,
        free_mib=min(most, gpu.free_mib + change.mib),
    )
    return dataclasses.replace(
        host, gpus=tuple(freed if g.uuid == gpu.uuid else g for g in host.gpus)
    )


def _with_disk(host: HostView, mib: int) -> HostView:
    in_use = host.disk_total_bytes - host.disk_free_bytes
    if host.disk_total_bytes and in_use < mib << 20:
        raise WhatIfError(
            f"{host.name}: {in_use >> 20} MiB of its disk are in use, {mib} MiB cannot be freed"
        )
    return dataclasses.replace(host, disk_free_bytes=host.disk_free_bytes + (mib << 20))


def _new_host(snapshot: Snapshot, change: AddHost) -> HostView:
    like = _host(snapshot, change.like) if change.like else _nearest(snapshot.hosts, change.mib)
    taken = {host.name for host in snapshot.hosts}
    name = next(
        n for n in ("new-host", *(f"new-host-{k}" for k in range(2, 999))) if n not in taken
    )
    device = min(
        (gpu for gpu in (like.gpus if like else ()) if gpu.kind == "cuda"),
        key=lambda gpu: abs(gpu.total_mib - change.mib),
        default=None,
    )
    base = like or HostView(name=name, reachable=True, disk_free_bytes=EMPTY_DISK_BYTES)
    return dataclasses.replace(
        _resumed(base),
        name=name,
        cordoned_in_inventory=False,
        reachable=True,
        unreachable_reason=None,
        unreachable_message="",
        silent_s=0.0,
        ready=True,
        not_ready_message="",
        gpus=tuple(
            GpuView(
                uuid=f"GPU-{name}-{number}",
                name=device.name if device else "",
                kind="cuda",
                total_mib=change.mib,
                free_mib=change.mib,
                max_decode_sessions=device.max_decode_sessions if device else 0,
            )
            for number in range(change.gpus)
        ),
        gpu_error="",
        max_parallel={
            **base.max_parallel, "train": max(change.gpus, base.max_parallel.get("train", 1))
        },
        ram_free_mib=base.ram_total_mib,
        ram_own_mib={},
        disk_free_bytes=base.disk_total_bytes or base.disk_free_bytes,
        storage=None,
        probe_age_s=0.0,
        cached_bytes={},
    )  # fmt: skip


def _nearest(hosts: Iterable[HostView], mib: int) -> HostView | None:
    """The usable host whose GPU is nearest in size."""
    sized = [
        (abs(gpu.total_mib - mib), host.name, host)
        for host in hosts
        for gpu in host.gpus
        if host.ready and gpu.kind == "cuda"
    ]
    return min(sized)[-1] if sized else next((host for host in hosts if host.ready), None)


def _with_host(snapshot: Snapshot, changed: HostView) -> Snapshot:
    return dataclasses.replace(
        snapshot,
        hosts=tuple(changed if host.name == changed.name else host for host in snapshot.hosts),
    )


def _host(snapshot: Snapshot, name: str) -> HostView:
    for host in snapshot.hosts:
        if host.name == name:
            return host
    raise WhatIfError(_unknown("host", name, [host.name for host in snapshot.hosts]))


def _gpu(snapshot: Snapshot, name: str) -> tuple[HostView, GpuView]:
    everyone = [(host, gpu) for host in snapshot.hosts for gpu in host.gpus]
    found = [pair for pair in everyone if pair[1].uuid == name]
    found = found or [pair for pair in everyone if pair[1].uuid.startswith(name)]
    found = found or [pair for pair in everyone if pair[0].name == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise WhatIfError(f"{name} is not one GPU but {', '.join(g.uuid for _, g in found)}")
    raise WhatIfError(_unknown("GPU", name, [gpu.uuid for _, gpu in everyone]))


def _unknown(what: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3) or known[:5]
    return (
        f"there is no {what} {name}; {'known are ' + ', '.join(near) if near else 'none is known'}"
    )
