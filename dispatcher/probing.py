"""Hosts are probed, what they say is written down, and how often each was is counted."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field

from dispatcher.clock import Clock
from dispatcher.fleet import Fleet
from dispatcher.fleet_view import HostState
from dispatcher.store.base import Store
from dispatcher.store.rows import Host


@dataclass(slots=True)
class Probing:
    fleet: Fleet
    store: Store
    clock: Clock
    limit_s: float
    _counts: Counter[str] = field(default_factory=Counter)

    async def probe(self, host: str, *, anew: bool) -> HostState | None:
        """`anew`: by a probe that begins now. None: the host left the inventory."""
        probe = self.fleet.probe_anew if anew else self.fleet.probe
        state = await probe(host, self.limit_s)
        if state is None:
            return None
        now = self.clock.now()
        await self.store.upsert_host(
            Host(
                name=host,
                state="reachable" if state.reachable else str(state.reason),
                message=state.message,
                facts=dataclasses.asdict(state.facts) if state.facts else None,
                probed_at=now if state.reachable else None,
                updated_at=now,
            )
        )
        self._counts[host] += 1
        return state

    def all_hosts(self, *, times: int) -> bool:
        """Whether every host was probed so often, whatever came of it."""
        return all(self._counts[state.host.name] >= times for state in self.fleet.states)
