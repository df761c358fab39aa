"""The dispatcher's board: told what changed, asked what to do, and why jobs wait.

A decision costs what changed since the last one. So do the words: of a large farm's waiting jobs
some are told at a time, in turn; of a small one's all, a few times a second.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dispatcher.clock import Clock
from dispatcher.core.board import Board, Placement
from dispatcher.core.model import Job, Reason, Step, Waiting
from dispatcher.core.policy import Policy
from dispatcher.core.views import released
from dispatcher.disk_writes import Written
from dispatcher.fleet import Fleet
from dispatcher.fleet_view import HostState
from dispatcher.garbage import keep_unsearched

# What the dispatcher does at a stretch, so that a survey of a hundred thousand jobs keeps nothing
# else waiting: tenths of a second (bench/simulate.py).
PORTION = 500  # jobs that are taken up
GIVEN = 100  # jobs that one decision gives a host
LOOKED_AT = 50  # hosts whose ages are looked at for one decision
TOLD = 3000  # jobs x hosts that are put into words for one decision
AGES_S = 1.0  # at most this often ages of probes are looked at
TURN_S = 0.5  # at most this often words are found
SHARE = 0.02  # of the time at most goes into deciding everything anew because needs changed


def in_turns(assignments: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(job, host), each host's first before any host's second: what comes early is brought early,
    and a host without work waits for nobody's provisions."""
    before: Counter[str] = Counter()
    turns = []
    for job, host in assignments:
        turns.append((before[host], job, host))
        before[host] += 1
    return [(job, host) for _, job, host in sorted(turns, key=lambda turn: turn[0])]


@dataclass(slots=True)
class Deciding:
    fleet: Fleet
    clock: Clock
    board: Board
    waiting: dict[str, Waiting] = field(default_factory=dict)  # as told to the store
    _ended: dict[str, dict[tuple[str, int], float]] = field(default_factory=dict)  # by host; when
    _shown: dict[str, HostState] = field(default_factory=dict)  # as the board knows them
    _freed: set[str] = field(default_factory=set)  # hosts where an attempt ended since then
    _written: Written = field(default_factory=Written)
    _turn: deque[str] = field(default_factory=deque)  # hosts to look at next
    _turn_at: float = float("-inf")
    _words_at: float = float("-inf")
    _to_tell: deque[str] = field(default_factory=deque)
    _placed: set[str] = field(default_factory=set)  # told to wait, and do not any more
    _shut: object = None  # cordons, breakers and thin pools that the board knows of
    _new_policy_at: float = 0.0

    def job(self, before: Job | None, after: Job) -> None:
        """A job was taken up or has changed."""
        self.board.put_job(after)
        if after.step is Step.START:
            self.waiting.pop(after.id, None)  # the store forgets it with the placement
        elif after.step is not Step.PLACE and after.id in self.waiting:
            self._placed.add(after.id)
        old = before.reservation if before is not None else None
        if old is not None and old != after.reservation:
            ended = self._ended.setdefault(old.host, {})
            ended[old.job, old.attempt] = self.clock.monotonic()
            self._freed.add(old.host)
        if host := self._written.note(before, after, self.clock.monotonic()):
            self._freed.add(host)

    def decide(self, policy: Policy) -> Placement:
        now = self.clock.monotonic()
        if policy is not self.board.policy and now >= self._new_policy_at:
            self.board.set_policy(policy)
            spent = self.clock.monotonic() - now
            self._new_policy_at = now + spent / SHARE
        self._look_at_hosts(now)
        decided = self.board.decide(self.clock.now(), GIVEN)
        if decided.more:
            keep_unsearched()
        return decided

    def _look_at_hosts(self, now: float) -> None:
        """Those of which something is new, and for their ages some in turn."""
        states = {state.host.name: state for state in self.fleet.states}
        for gone in self.board.hosts - states.keys():
            self.board.drop_host(gone)
            self._shown.pop(gone, None)
        pools = {key: (pool.shut, pool.figures is None) for key, pool in self.fleet.pools.items()}
        shut = (dict(self.fleet.cordons), dict(self.fleet.breakers), pools)
        due = {name for name, state in states.items() if self._shown.get(name) is not state}
        due |= (self._freed | self._next_turn(states, now)) & states.keys()
        if shut != self._shut:
            self._shut = shut
            due = set(states)
        self._freed.clear()
        for name in sorted(due):
            self._shown[name] = states[name]
            self._show(states[name], now)

    def _next_turn(self, states: Mapping[str, HostState], now: float) -> set[str]:
        if now < self._turn_at + AGES_S:
            return set()
        self._turn_at = now
        if not self._turn:
            self._turn.extend(sorted(states))
        return {self._turn.popleft() for _ in range(min(LOOKED_AT, len(self._turn)))}

    def _show(self, state: HostState, now: float) -> None:
        """A probe may be older than the end of an attempt that it saw memory of."""
        name = state.host.name
        view = self.fleet.view(state, now, {})
        probed_at = state.probed_at if state.probed_at is not None else float("-inf")
        view = self._written.taken_off(view, probed_at)
        ended = self._ended.get(name)
        if ended:
            for attempt in [key for key, at in ended.items() if at <= probed_at]:
                del ended[attempt]
            view = released(view, ended)
        self.board.put_host(view)

    def freed(self, host: str) -> None:
        """Something was removed there."""
        self._written.freed(host, self.clock.monotonic())

    def unseen_disks(self) -> set[str]:
        """Hosts that answer, and whose disks changed since they were probed."""
        reachable = {state.host.name for state in self.fleet.states if state.reachable}
        return self._written.unseen() & reachable

    def wants_disk(self) -> bool:
        """Whether some job waits for room on a disk: what is freed there cannot wait for the next
        probe."""
        return any(waiting.reason is Reason.DISK_LOW for waiting in self.waiting.values())

    def words(self) -> dict[str, Waiting | None]:
        """Why jobs wait, where that has changed since it was asked last; None: it waits no more.
        Ask before anything is put on the board."""
        found: dict[str, Waiting | None] = {job: None for job in self._placed}
        self._placed.clear()
        now = self.clock.monotonic()
        if now >= self._words_at + TURN_S:
            self._words_at = now
            found.update(self.board.why(self._next_to_tell()))
        changed = {job: why for job, why in found.items() if self.waiting.get(job) != why}
        for job, why in changed.items():
            if why is None:
                self.waiting.pop(job, None)
            else:
                self.waiting[job] = why
        return changed

    def _next_to_tell(self) -> list[str]:
        waits = self.board.waits
        most = max(1, TOLD // max(1, len(self.board.hosts)))
        if len(waits) <= most:
            return list(waits)
        if not self._to_tell:
            self._to_tell.extend(sorted(waits))
        return [self._to_tell.popleft() for _ in range(min(most, len(self._to_tell)))]
