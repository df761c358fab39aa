"""What is known of the hosts: probed over their executors, told to placement as HostViews."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

from dispatcher.clock import Clock, SystemClock
from dispatcher.core.breaker import Breaker
from dispatcher.core.model import Reason
from dispatcher.core.pool import PoolState
from dispatcher.core.views import HostView
from dispatcher.errors import HostError
from dispatcher.executors.base import Executor
from dispatcher.fleet_view import (
    HostState,
    brought,
    held_against,
    host_view,
    over_pool,
    pools_of,
    reached,
)
from dispatcher.inventory_model import Inventory, InventoryDiff, InventoryHost, diff
from worker_agent.protocol import HostFacts

# Between an end of the probe's own limit and the fleet's: installing the agent may come first.
PROBE_MARGIN_S = 10.0

MakeExecutor = Callable[[InventoryHost], Executor]


class Fleet:
    """Hosts, executors and what the last probes said. One probe of a host runs at a time."""

    def __init__(
        self,
        inventory: Inventory,
        executors: Mapping[str, Executor],
        *,
        clock: Clock | None = None,
    ) -> None:
        self._clock: Clock = clock or SystemClock()
        self._executors = dict(executors)
        self.inventory = inventory
        self._in_pools = pools_of(inventory)
        self._states = {h.name: self._new(h) for h in inventory.hosts if h.name in self._executors}
        self._probing: dict[str, asyncio.Event] = {}  # set when that probe has ended
        # What the database says: hosts the operator cordoned (True: to be drained), and breakers
        # by host name or GPU UUID. Kept by dispatcher.quarantine.
        self.cordons: Mapping[str, bool] = {}
        self.breakers: Mapping[str, Breaker] = {}
        self.pools: Mapping[str, PoolState] = {}  # by key; kept by dispatcher.thin_pool

    def _new(self, host: InventoryHost) -> HostState:
        return HostState(host=host, since=self._clock.monotonic())

    @classmethod
    def of(cls, inventory: Inventory, make: MakeExecutor, *, clock: Clock | None = None) -> Fleet:
        """A fleet with one executor a host."""
        return cls(inventory, {host.name: make(host) for host in inventory.hosts}, clock=clock)

    @property
    def states(self) -> tuple[HostState, ...]:
        return tuple(self._states.values())

    def state(self, name: str) -> HostState | None:
        return self._states.get(name)

    def executor(self, name: str) -> Executor:
        """Raises HostError for a host that is no longer in the inventory."""
        try:
            return self._executors[name]
        except KeyError:
            raise HostError(
                Reason.HOST_UNREACHABLE,
                "the host is no longer in the inventory",
                where=name,
                fix="put it back, or cancel the job",
            ) from None

    async def probe_all(self, timeout_s: float = 30.0) -> tuple[HostState, ...]:
        """Probe every host at once; ends within `timeout_s` plus a margin whatever hosts do."""
        await asyncio.gather(*(self.probe(name, timeout_s) for name in tuple(self._states)))
        return self.states

    async def probe(self, name: str, timeout_s: float = 30.0) -> HostState:
        """Never raises for what a host does: it becomes the host's state.

        Raises KeyError for a host that is not in the inventory.
        """
        state = self._states[name]
        if name in self._probing:
            return state
        ended = self._probing[name] = asyncio.Event()
        asked = self._clock.monotonic()
        try:
            async with asyncio.timeout(timeout_s + PROBE_MARGIN_S):
                facts = await self._executors[name].probe(timeout_s)
        except TimeoutError:
            why = f"no answer to a probe within {timeout_s + PROBE_MARGIN_S:g} s"
            self._failed(name, Reason.HOST_UNREACHABLE, f"{name}: {why}")
        except HostError as error:
            self._failed(name, error.reason, error.line)
        else:
            self._reached(name, facts, asked)
        finally:
            del self._probing[name]
            ended.set()
        return self._states.get(name, state)

    async def probe_anew(self, name: str, timeout_s: float = 30.0) -> HostState | None:
        """As `probe`, but one that is under way may have looked already, and is waited for. None:
        the host left the inventory."""
        while (running := self._probing.get(name)) is not None:
            await running.wait()
        return await self.probe(name, timeout_s) if name in self._states else None

    def _failed(self, name: str, reason: Reason, message: str) -> None:
        state = self._states.get(name)
        if state is None:  # removed by a reload meanwhile
            return
        since = self._clock.monotonic() if state.reachable else state.since
        self._states[name] = replace(
            state, reachable=False, reason=reason, message=message, since=since
        )

    def _reached(self, name: str, facts: HostFacts, asked: float) -> None:
        state = self._states.get(name)
        if state is None:
            return
        now = self._clock.monotonic()
        self._states[name] = reached(state, facts, asked=asked, now=now)

    def attempt_ended(self, host: str, job: str, attempt: int) -> None:
        """The host says that no process of this attempt is left."""
        state = self._states.get(host)
        if state is not None:
            ended = {**state.ended, (job, attempt): self._clock.monotonic()}
            self._states[host] = replace(state, ended=ended)

    def brought(self, host: str, size: int, seconds: float) -> None:
        """So many bytes came there over its link: what the next ones will take."""
        state = self._states.get(host)
        if state is not None:
            self._states[host] = brought(state, size, seconds)

    def host_views(
        self,
        now: float | None = None,
        cached_bytes: Mapping[str, Mapping[str, int]] | None = None,
    ) -> list[HostView]:
        """All hosts as placement sees them at monotonic time `now`.

        `cached_bytes`: host -> job -> input bytes that lie there already.
        """
        at = self._clock.monotonic() if now is None else now
        cached = cached_bytes or {}
        return [self.view(s, at, cached.get(s.host.name, {})) for s in self._states.values()]

    def view(self, state: HostState, now: float, cached: Mapping[str, int]) -> HostView:
        """`host_view` with what operator, breakers and thin pools hold against the host."""
        seen = held_against(host_view(state, now, cached), self.cordons, self.breakers)
        return over_pool(seen, state.host, self._in_pools, self.pools, now)

    async def reload(self, inventory: Inventory, make: MakeExecutor) -> InventoryDiff:
        """Apply a changed inventory. A host whose connection data changed gets a new executor;
        what runs on a removed host goes on there, unwatched."""
        changes = diff(self.inventory, inventory)
        dropped: list[Executor] = []
        for name in changes.removed:
            self._states.pop(name, None)
            dropped.append(self._executors.pop(name))
        for host in inventory.hosts:
            if host.name in changes.added:
                self._executors[host.name] = make(host)
                self._states[host.name] = self._new(host)
            elif host.name in changes.changed:
                old = self._states[host.name]
                if _connection(old.host) != _connection(host):
                    dropped.append(self._executors[host.name])
                    self._executors[host.name] = make(host)
                    self._states[host.name] = self._new(host)
                else:
                    self._states[host.name] = replace(old, host=host)
        self.inventory, self._in_pools = inventory, pools_of(inventory)
        await asyncio.gather(*(executor.close() for executor in dropped))
        return changes

    async def close(self) -> None:
        await asyncio.gather(*(executor.close() for executor in self._executors.values()))


def _connection(host: InventoryHost) -> InventoryHost:
    """The host without what an executor does not depend on."""
    plain = {
        "labels": (),
        "cordoned": False,
        "vram_headroom_mib": 0,
        "gpus": "auto",
        "max_decode_sessions": 0,
        "requeue": "auto",
    }
    kept = InventoryHost(name=host.name, address=host.address)
    same = {"max_parallel": kept.max_parallel, "disk": kept.disk, "reclaim": kept.reclaim}
    return host.model_copy(update={**plain, **same})
