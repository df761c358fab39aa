"""Jobs that wait for a host, in groups of equal need: what holds for one holds for all. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from dispatcher.core.model import Job
from dispatcher.core.policy import work

Age = tuple[float, str]


@dataclass(slots=True, eq=False)
class Group:
    """`like`: one of the jobs. `jobs`: oldest first."""

    key: Hashable
    like: Job
    leaves: str | None  # the host they have and are to be moved away from
    cached: tuple[str, ...]  # hosts that have some of the inputs already
    jobs: list[Age] = field(default_factory=list)


class Queue:
    def __init__(self) -> None:
        self._levels: dict[int, dict[Hashable, Group]] = defaultdict(dict)  # by priority
        self._at: dict[str, tuple[Group, Age]] = {}

    def __contains__(self, job: str) -> bool:
        return job in self._at

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def put(self, job: Job, leaves: str | None, cached: tuple[str, ...]) -> None:
        self.drop(job.id)
        key = (
            job.acquisition,
            work(job),
            job.stage,
            frozenset(job.avoid_hosts),
            leaves,
            cached and (job.id, cached),
        )
        level = self._levels[job.priority]
        group = level.get(key)
        if group is None:
            group = level[key] = Group(key=key, like=job, leaves=leaves, cached=cached)
        age = (job.created_at, job.id)
        insort(group.jobs, age)
        self._at[job.id] = (group, age)

    def drop(self, job: str) -> None:
        found = self._at.pop(job, None)
        if found is None:
            return
        group, age = found
        del group.jobs[bisect_left(group.jobs, age)]
        if not group.jobs:
            level = self._levels[group.like.priority]
            del level[group.key]
            if not level:
                del self._levels[group.like.priority]

    def group_of(self, job: str) -> Group:
        return self._at[job][0]

    def levels(self) -> Iterator[list[Group]]:
        """Highest priority first."""
        for priority in sorted(self._levels, reverse=True):
            yield list(self._levels[priority].values())
