"""The dispatcher's board: told what changed, asked what to do, and why jobs wait.

A decision costs what changed since the last one. So do the words: of a large farm's waiting jobs
some are told at a time, in turn; of a small one's all.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from dispatcher.clock import Clock
from dispatcher.core.board import Board, Placement
from dispatcher.core.model import Job, Step, Waiting
from dispatcher.core.policy import Policy
from dispatcher.core.views import released
from dispatcher.fleet import Fleet
from dispatcher.fleet_view import HostState
from dispatcher.store.base import Store

LOOKED_AT = 50  # hosts whose ages are looked at for one decision
TOLD = 3000  # jobs x hosts that are put into words for one decision
SHARE = 0.02  # of the time at most goes into deciding everything anew because needs changed


@dataclass(slots=True)
class Deciding:
    fleet: Fleet
    store: Store
    clock: Clock
    board: Board
    waiting: dict[str, Waiting] = field(default_factory=dict)  # as told to the store
    _ended: dict[str, dict[tuple[str, int], float]] = field(default_factory=dict)  # by host; when
    _probed: set[str] = field(default_factory=set)
    _turn: deque[str] = field(default_factory=deque)  # hosts to look at next
    _to_tell: deque[str] = field(default_factory=deque)
    _placed: set[str] = field(default_factory=set)  # told to wait, and do not any more
    _shut: object = None  # cordons, breakers and thin pools that the board knows of
    _new_policy_at: float = 0.0

    def job(self, before: Job | None, after: Job) -> None:
        """A job was taken up or has changed."""
        self.board.put_job(after)
        if after.step is not Step.PLACE and after.id in self.waiting:
            self._placed.add(after.id)
        old = before.reservation if before is not None else None
        if old is not None and old != after.reservation:
            ended = self._ended.setdefault(old.host, {})
            ended[old.job, old.attempt] = self.clock.monotonic()

    def probed(self, host: str) -> None:
        self._probed.add(host)

    def decide(self, policy: Policy) -> Placement:
        now = self.clock.monotonic()
        if policy is not self.board.policy and now >= self._new_policy_at:
            self.board.set_policy(policy)
            spent = self.clock.monotonic() - now
            self._new_policy_at = now + spent / SHARE
        self._look_at_hosts(now)
        return self.board.decide(self.clock.now())

    def _look_at_hosts(self, now: float) -> None:
        states = {state.host.name: state for state in self.fleet.states}
        for gone in self.board.hosts - states.keys():
            self.board.drop_host(gone)
        pools = {key: (pool.shut, pool.figures is None) for key, pool in self.fleet.pools.items()}
        shut = (dict(self.fleet.cordons), dict(self.fleet.breakers), pools)
        if shut != self._shut or len(states) <= LOOKED_AT:
            self._shut = shut
            due = set(states)
        else:
            if not self._turn:
                self._turn.extend(sorted(states))
            turn = {self._turn.popleft() for _ in range(min(LOOKED_AT, len(self._turn)))}
            due = (self._probed | turn | (states.keys() - self.board.hosts)) & states.keys()
        self._probed.clear()
        for name in due:
            self._show(states[name], now)

    def _show(self, state: HostState, now: float) -> None:
        """A probe may be older than the end of an attempt that it saw memory of."""
        name = state.host.name
        view = self.fleet.view(state, now, {})
        ended = self._ended.get(name)
        if ended:
            probed_at = state.probed_at if state.probed_at is not None else float("-inf")
            for attempt in [key for key, at in ended.items() if at <= probed_at]:
                del ended[attempt]
            view = released(view, ended)
        self.board.put_host(view)

    async def tell(self) -> None:
        """Write down why jobs wait, where that has changed."""
        waits = self.board.waits
        most = max(1, TOLD // max(1, len(self.board.hosts)))
        if len(waits) <= most:
            asked = list(waits)
        else:
            if not self._to_tell:
                self._to_tell.extend(sorted(waits))
            asked = [self._to_tell.popleft() for _ in range(min(most, len(self._to_tell)))]
        found: dict[str, Waiting | None] = {job: None for job in self._placed}
        found.update(self.board.why(asked))
        self._placed.clear()
        changed = {job: why for job, why in found.items() if self.waiting.get(job) != why}
        if changed:
            await self.store.set_waiting(changed)
        for job, why in changed.items():
            if why is None:
                self.waiting.pop(job, None)
            else:
                self.waiting[job] = why
