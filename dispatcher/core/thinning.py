"""Fewer frames for a job that no host's memory can hold: the plan before the hold. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable

from dispatcher.core.ledger import Ledger
from dispatcher.core.model import Job
from dispatcher.core.policy import Policy
from dispatcher.core.shape import MAX_STRIDE, thinned
from dispatcher.core.views import HostView


def strides_that_fit(
    jobs: Iterable[Job], hosts: Iterable[HostView], policy: Policy
) -> dict[str, int]:
    """For each job the smallest stride by which some host could hold all its stages ahead.

    A job is left out where one of `hosts` could hold it as it is, whatever keeps it from doing so
    now, where no stride helps, and where it is not for RAM that none takes it.
    """
    ledgers = _kinds(hosts, policy)
    known: dict[Hashable, int | None] = {}
    found = {}
    for job in jobs:
        key = (policy.work(job), job.stage)
        if key not in known:
            known[key] = _stride(job, ledgers)
        stride = known[key]
        if stride is not None:
            found[job.id] = stride
    return found


def _stride(job: Job, ledgers: list[Ledger]) -> int | None:
    for stride in range(job.stride, MAX_STRIDE + 1):
        fewer = thinned(job, stride)
        if any(ledger.capable(fewer) for ledger in ledgers):
            return stride if stride > job.stride else None
    return None


def _kinds(hosts: Iterable[HostView], policy: Policy) -> list[Ledger]:
    """One host of each size, without what may pass: a quarantine, an old probe."""
    kinds: dict[Hashable, Ledger] = {}
    for host in hosts:
        gpus = tuple(dataclasses.replace(gpu, quarantine=None) for gpu in host.gpus)
        size = (
            host.ram_total_mib,
            host.headroom_mib,
            tuple((gpu.name, gpu.kind, gpu.total_mib) for gpu in gpus),
        )
        if size not in kinds:
            kinds[size] = Ledger(dataclasses.replace(host, gpus=gpus), policy)
    return list(kinds.values())
