"""Jobs and hosts as they stand, kept between decisions so that a decision costs what changed."""

from __future__ import annotations

from dispatcher.core.ledger import Policy
from dispatcher.core.model import Job, Waiting
from dispatcher.core.place import Placement, place
from dispatcher.core.views import HostView


class Board:
    """Always equal to one built afresh from the same jobs and hosts, whatever came before."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._jobs: dict[str, Job] = {}
        self._hosts: dict[str, HostView] = {}
        self._last: Placement | None = None

    def put_job(self, job: Job) -> None:
        """A new job, or its new state."""
        self._jobs[job.id] = job

    def drop_job(self, job: str) -> None:
        self._jobs.pop(job, None)

    def put_host(self, host: HostView) -> None:
        self._hosts[host.name] = host

    def drop_host(self, host: str) -> None:
        self._hosts.pop(host, None)

    def decide(self, now: float) -> Placement:
        """`now` is wall clock, as Job.not_before is. Changes nothing on the board: what was
        decided comes back as jobs with a reservation or a host."""
        promised = [job.reservation for job in self._jobs.values() if job.reservation is not None]
        self._last = place(self._jobs.values(), self._hosts.values(), promised, self.policy, now)
        return self._last

    def waiting(self) -> tuple[Waiting, ...]:
        """Why each job that the last decision left out waits."""
        return self._last.waiting if self._last is not None else ()
