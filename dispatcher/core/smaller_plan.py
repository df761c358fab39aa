"""A smaller plan for a job that no host can hold by its own: before it is held. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass

from dispatcher.core.events import PlanReduced
from dispatcher.core.ledger import Ledger
from dispatcher.core.model import Job, JobKind
from dispatcher.core.policy import Policy
from dispatcher.core.views import HostView
from dispatcher.core.work_size import MAX_SHRINK, MAX_STRIDE, reduced


@dataclass(frozen=True, slots=True)
class SmallerPlan:
    """`shrink` steps of SHRINKS for a device's memory, every `stride`-th frame for RAM."""

    shrink: int
    stride: int

    def taken(self, at: float, message: str) -> PlanReduced:
        return PlanReduced(at=at, shrink=self.shrink, stride=self.stride, message=message)


def plans_that_fit(
    jobs: Iterable[Job], hosts: Iterable[HostView], policy: Policy
) -> dict[str, SmallerPlan]:
    """For each job the smallest change by which some host could hold all its stages ahead: fewer
    frames where that is enough, else the fewest steps of shrinking with the smallest stride.

    A job is left out where one of `hosts` could hold it as it is, whatever keeps it from doing so
    now, and where nothing helps: a stitch has no smaller plan.
    """
    ledgers = _kinds(hosts, policy)
    known: dict[Hashable, SmallerPlan | None] = {}
    found = {}
    for job in jobs:
        key = (policy.work(job), job.stage)
        if key not in known:
            known[key] = _first_that_fits(job, ledgers)
        plan = known[key]
        if plan is not None:
            found[job.id] = plan
    return found


def _first_that_fits(job: Job, ledgers: list[Ledger]) -> SmallerPlan | None:
    for plan in _plans(job):
        smaller = reduced(job, shrink=plan.shrink, stride=plan.stride)
        if any(ledger.capable(smaller) for ledger in ledgers):
            return plan if smaller != job else None
    return None


def _plans(job: Job) -> Iterator[SmallerPlan]:
    """The job's own first."""
    if job.kind is not JobKind.RECONSTRUCT:
        return
    for shrink in range(job.shrink, max(job.shrink, MAX_SHRINK) + 1):
        for stride in range(job.stride, MAX_STRIDE + 1):
            yield SmallerPlan(shrink, stride)


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
