"""Fewer frames for a job that no host's RAM can hold: the plan before the hold. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from dispatcher.core.ledger import Ledger
from dispatcher.core.model import Job
from dispatcher.core.policy import Policy
from dispatcher.core.shape import MAX_STRIDE, thinned
from dispatcher.core.views import HostView


def stride_that_fits(job: Job, hosts: Iterable[HostView], policy: Policy) -> int | None:
    """The smallest stride by which some host could hold every stage ahead of the job.

    None where nothing is to be changed: one of `hosts` could hold the job as it is, whatever
    keeps it from doing so now, or no stride helps, or it is not for RAM that none takes it.
    """
    ledgers = [Ledger(host, policy) for host in hosts]
    able = [ledger for ledger in ledgers if ledger.unfit(job) is None]
    if not able or any(ledger.small_ram(job) is None for ledger in able):
        return None
    for stride in range(job.stride + 1, MAX_STRIDE + 1):
        fewer = thinned(job, stride)
        if any(ledger.small_ram(fewer) is None for ledger in able):
            return stride
    return None
