"""Jobs and hosts as they stand, kept between decisions so that a decision costs what changed.

Pure and deterministic: a board equals one built afresh from the same jobs and hosts, whatever came
before. A decision has two parts. What waits on a host starts there or not: that depends on this
host alone and is decided again only where something changed (dispatcher.core.stage_starts). What
has no host, or is to leave the one it has, is given one: jobs of equal need are asked for together
(queue), hosts that can hold the same jobs are kept sorted (yard), so that the cost grows with what
is assigned and with the kinds of job and host, not with their number (assigning).
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

from dispatcher.core.assignment import Assigner
from dispatcher.core.ledger import Ledger, Refusal
from dispatcher.core.model import SETTLED, Job, Reservation, Stage, Step, Waiting
from dispatcher.core.policy import Policy, share_key
from dispatcher.core.queue import Label, Queue
from dispatcher.core.reasons import backoff, lost_host, no_host, waiting
from dispatcher.core.stage_starts import start_all, why_not
from dispatcher.core.views import HostView, fresh
from dispatcher.core.yard import Yard

ASKED = 10  # jobs that are asked for anew in about the time in which one is given a host

Told = tuple[Label, Hashable, Stage]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What to do now. An assignment of a job that has a host moves it."""

    assignments: tuple[tuple[str, str], ...]  # (job, host), in the order they were decided
    stages: tuple[Reservation, ...]  # attempt = job.attempt + 1
    more: bool = False  # not all that could be given a host was: decide again once these are told


class Board:
    def __init__(self, policy: Policy) -> None:
        self._jobs: dict[str, Job] = {}
        self._hosts: dict[str, HostView] = {}
        self._begin(policy)

    def _begin(self, policy: Policy) -> None:
        self._policy = policy
        self._ledgers: dict[str, Ledger] = {}
        self._here: dict[str, set[str]] = defaultdict(set)  # host -> jobs not settled that have it
        self._cached: dict[str, set[str]] = defaultdict(set)  # job -> hosts that have inputs of it
        self._dirty: set[str] = set()  # hosts to decide on again
        self._starting: set[str] = set()  # hosts that the last decision started stages on
        self._waits: dict[str, None] = {}
        self._alarms: list[tuple[float, str]] = []  # when time alone changes something for a job
        self._now = float("-inf")
        self._queue = Queue()
        self._yard = Yard(policy)
        self._fits = self._yard.version  # that jobs stand in the queue by, or will
        self._unasked: list[Hashable] = []  # works whose jobs do not yet
        self._counted: dict[str, tuple[int, Counter[tuple[str, str]]]] = {}  # host -> jobs it holds
        self._assigner = Assigner(policy, self._yard, self._queue, self._ledgers)

    @property
    def policy(self) -> Policy:
        return self._policy

    @property
    def hosts(self) -> Set[str]:
        return self._hosts.keys()

    @property
    def waits(self) -> Set[str]:
        """Jobs that wait for a host, or for their next stage."""
        return self._waits.keys()

    @property
    def unfit(self) -> Iterator[str]:
        """Jobs without a host that none of these hosts could hold, whatever else is there."""
        shelves = self._queue.shelves.items()
        return (job for label, shelf in shelves if not label.fit.kinds for job in shelf)

    def set_policy(self, policy: Policy) -> None:
        """Needs learned since, or other limits: all is decided again."""
        if policy is self._policy:
            return
        if dataclasses.replace(policy, needs=self._policy.needs) == self._policy:
            self._learn(policy)
            return
        self._begin(policy)
        for host in self._hosts.values():
            self._put_host(None, host)
        for job in self._jobs.values():
            self._set_down(job)

    def _learn(self, policy: Policy) -> None:
        """Needs only: alarms, shares and who is where stay."""
        self._undo()
        self._policy = policy
        self._yard.learn(policy)
        self._assigner.learn(policy)
        for ledger in self._ledgers.values():
            ledger.learn(policy)
        self._dirty.update(self._ledgers)

    # --- what is known ---

    def put_job(self, job: Job) -> None:
        """A new job, or its new state."""
        self._undo()
        if self._goes_on(job):
            return
        self._take_off(job.id)
        self._jobs[job.id] = job
        self._set_down(job)

    def _goes_on(self, job: Job) -> bool:
        """Whether the job only does what was decided: started by the last decision, or further on
        in the same attempt. Then all there is to decide on its host has been decided."""
        before, ledger = self._jobs.get(job.id), self._ledgers.get(job.host or "")
        if before is None or ledger is None or before.host != job.host or job.host in self._dirty:
            return False
        same = before.stage is job.stage and self._policy.work(before) == self._policy.work(job)
        if job.reservation is None or not same:
            return False
        if before.reservation != job.reservation:
            if not ledger.final or ledger.starts != [job.reservation]:
                return False
            ledger.starts = []
            self._starting.discard(ledger.host.name)
            self._waits.pop(job.id, None)
        self._jobs[job.id] = ledger.residents[job.id] = job
        return True

    def drop_job(self, job: str) -> None:
        self._undo()
        self._take_off(job)
        self._jobs.pop(job, None)

    def put_host(self, host: HostView) -> None:
        host = fresh(host, self._policy.probe_stale_s)
        before = self._hosts.get(host.name)
        if before != host:
            self._undo()
            self._hosts[host.name] = host
            self._put_host(before, host)

    def drop_host(self, host: str) -> None:
        before = self._hosts.pop(host, None)
        if before is None:
            return
        self._undo()
        for job in self._ledgers.pop(host).movers:
            self._queue.drop(job)
        self._yard.drop(host)
        self._count(host, None)
        self._dirty.discard(host)
        self._starting.discard(host)
        self._cache(before.name, before.cached_bytes, {})

    def _undo(self) -> None:
        for job, (host, label) in self._assigner.undo().items():
            self._dirty.update(self._ledgers.keys() & {host})
            self._enqueue(self._jobs[job], label.leaves)

    def _put_host(self, before: HostView | None, host: HostView) -> None:
        self._dirty.add(host.name)
        self._cache(host.name, before.cached_bytes if before else {}, host.cached_bytes)
        if before is not None:
            self._ledgers[host.name].show(host)
            return
        ledger = self._ledgers[host.name] = Ledger(host, self._policy)
        for job in self._here.get(host.name, ()):
            ledger.adopt(self._jobs[job])

    def _cache(self, host: str, before: Mapping[str, int], after: Mapping[str, int]) -> None:
        for job in before.keys() ^ after.keys():
            (self._cached[job].add if job in after else self._cached[job].discard)(host)
            if not self._cached[job]:
                del self._cached[job]
            if job in self._queue:
                self._enqueue(self._jobs[job], self._queue.label_of(job).leaves)

    def _enqueue(self, job: Job, leaves: str | None) -> None:
        cached = tuple(sorted(self._cached.get(job.id, ())))
        self._queue.put(job, self._yard.asked(job), leaves, cached)

    def _take_off(self, job: str) -> None:
        before = self._jobs.get(job)
        if before is None:
            return
        self._queue.drop(job)
        self._waits.pop(job, None)
        if before.host is not None:
            self._here[before.host].discard(job)
            if before.host in self._ledgers:
                self._ledgers[before.host].release(before)
                self._ledgers[before.host].movers.pop(job, None)
                self._dirty.add(before.host)

    def _set_down(self, job: Job) -> None:
        if job.state in SETTLED:
            return
        if job.host is not None:
            self._here[job.host].add(job.id)
            if job.host in self._ledgers:
                self._ledgers[job.host].adopt(job)
                self._dirty.add(job.host)
        if job.step is not Step.PLACE:
            return
        self._waits[job.id] = None
        now = max(0.0, self._now)  # 0: before the first decision what has no delay is known
        if job.host is None and job.not_before <= now:
            self._enqueue(job, None)
        overdue = job.assigned_at + self._policy.patience_s
        for at in (job.not_before, *([overdue] if job.host is not None else [])):
            if at > now:
                heapq.heappush(self._alarms, (at, job.id))

    # --- decisions ---

    def decide(self, now: float, most: int | None = None) -> Placement:
        """`now` is wall clock, as Job.not_before is. Changes nothing on the board: what was
        decided comes back as jobs with a reservation or a host. `most`: jobs that are given a host
        at a time, so that a decision takes no longer however many hosts are idle or jobs came."""
        self._undo()
        due = self._pass_time(now)
        for name in self._dirty:
            self._start_on(self._ledgers[name], now)
        self._dirty.clear()
        self._ask_again(most)
        for job in due:
            self._enqueue(job, None)
        # By priority and share only when all are asked: else they would not be known of all.
        given = [] if self._unasked else self._assigner.assign(self._jobs, now, most)
        starts = (self._ledgers[name].starts for name in sorted(self._starting))
        return Placement(
            assignments=tuple(given),
            stages=tuple(one for some in starts for one in some),
            more=bool(self._unasked) or len(given) == most,
        )

    def _ask_again(self, most: int | None) -> None:
        """For all that waits, where kinds of host or needs are not what they were; of many jobs,
        for some at a time."""
        if self._fits != self._yard.version:
            self._fits = self._yard.version
            self._unasked = self._queue.works
        asked = 0
        while self._unasked and (most is None or asked < ASKED * most):
            some = self._queue.some_of(self._unasked.pop())
            if some is None:
                continue
            asked += some[1]
            for job, leaves in self._queue.ask(self._yard.asked(self._jobs[some[0]])):
                self._enqueue(self._jobs[job], leaves)

    def _pass_time(self, now: float) -> list[Job]:
        """Returns the jobs without a host whose delay has passed."""
        if now < self._now:  # the clock was set back: what was due may not be any more
            self._now = now
            for known in [*self._jobs.values()]:
                self._take_off(known.id)
                self._set_down(known)
        self._now = now
        due: dict[str, Job] = {}
        while self._alarms and self._alarms[0][0] <= now:
            job = self._jobs.get(heapq.heappop(self._alarms)[1])
            if job is None or job.step is not Step.PLACE:
                continue
            if job.host in self._ledgers:
                self._dirty.add(job.host or "")
            elif job.host is None and job.not_before <= now and job.id not in self._queue:
                due[job.id] = job
        return list(due.values())

    def _start_on(self, ledger: Ledger, now: float) -> None:
        name = ledger.host.name
        for mover in ledger.movers:
            self._queue.drop(mover)
        start_all(ledger, now)
        for mover in ledger.movers:
            self._enqueue(self._jobs[mover], name)
        (self._starting.add if ledger.starts else self._starting.discard)(name)
        self._yard.put(ledger)
        self._count(name, ledger)

    def _count(self, name: str, ledger: Ledger | None) -> None:
        """Tell the queue which jobs have a host of which kind."""
        bit, counted = self._counted.pop(name, (0, Counter()))
        held = Counter(share_key(job) for job in ledger.residents.values()) if ledger else Counter()
        at = self._yard.kind_of(name).bit if ledger else bit
        if ledger is not None:
            self._counted[name] = (at, held)
        if (at, held) == (bit, counted):
            return
        for share, count in counted.items():
            self._queue.hold(share, bit, -count)
        for share, count in held.items():
            self._queue.hold(share, at, count)

    # --- reasons, of the last decision; ask before anything is put ---

    def waiting(self) -> tuple[Waiting, ...]:
        """Why each job that the last decision left out waits, by id. Costs jobs x hosts at worst:
        for a few jobs of a large farm ask `why`."""
        told: dict[Told, Waiting] = {}
        whys = (self._why(self._jobs[job], told) for job in sorted(self._waits))
        return tuple(why for why in whys if why is not None)

    def why(self, jobs: Iterable[str]) -> dict[str, Waiting | None]:
        """Why the last decision left each of the jobs out; None: it did not, or none waits."""
        told: dict[Told, Waiting] = {}
        known = ((job, self._jobs.get(job)) for job in jobs)
        return {name: self._why(job, told) if job is not None else None for name, job in known}

    def refused_by(self, host: str, job: str) -> tuple[Ledger, Refusal | None]:
        """A host as the last decision left it, and why it did not take or start the job, which
        waits."""
        ledger, one = self._ledgers[host], self._jobs[job]
        if job in ledger.movers:
            return ledger, ledger.movers[job]
        if job in self._queue:
            return ledger, self._assigner.refusal(one, self._queue.label_of(job), ledger)
        return ledger, why_not(ledger, one)

    def _why(self, job: Job, told: dict[Told, Waiting]) -> Waiting | None:
        if job.step is not Step.PLACE or job.state in SETTLED or job.id in self._assigner.coming:
            return None
        if job.not_before > self._now:
            return backoff(job, self._now)
        if job.id in self._queue:
            return self._why_left(job, told)
        own = self._ledgers.get(job.host or "")
        if own is None:
            return lost_host(job)
        if any(one.job == job.id for one in own.starts):
            return None
        refusal = why_not(own, job)
        return waiting(job, {own.host.name: refusal}) if refusal is not None else None

    def _why_left(self, job: Job, told: dict[Told, Waiting]) -> Waiting:
        """Jobs of one shelf and of equal work are left out for the same reasons."""
        label = self._queue.label_of(job.id)
        key = (label, self._policy.work(job), job.stage)
        if key in told:
            return dataclasses.replace(told[key], job=job.id)
        if not self._ledgers:
            return no_host(job)
        own = {label.leaves: self._ledgers[label.leaves].movers[job.id]} if label.leaves else {}
        if own and not self._assigner.has_others(job, label):
            alone = waiting(job, own)
            return dataclasses.replace(
                alone, message=f"{alone.message}; no other host could take it now"
            )
        refusals = {
            name: self._assigner.refusal(job, label, ledger)
            for name, ledger in sorted(self._ledgers.items())
            if name not in own
        }
        found = waiting(job, refusals)
        lines = {name: f"{name}: {text}" for name, (_, text) in own.items()}
        told[key] = dataclasses.replace(found, per_host={**lines, **found.per_host})
        return told[key]
