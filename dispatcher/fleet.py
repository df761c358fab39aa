"""What is known of the hosts: probed over their executors, told to placement as HostViews."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from dispatcher.clock import Clock, SystemClock
from dispatcher.core.breaker import Breaker, quarantine
from dispatcher.core.model import GpuView, HostView, Reason
from dispatcher.errors import HostError
from dispatcher.executors.base import Executor
from dispatcher.inventory_model import Inventory, InventoryDiff, InventoryHost, diff
from worker_agent.protocol import GpuFacts, HostFacts

GIB = 1 << 30
# Placement sees a host that was never probed as one whose probe is this old.
NEVER_S = 1e9
# Between an end of the probe's own limit and the fleet's: installing the agent may come first.
PROBE_MARGIN_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostState:
    """Times are monotonic seconds. `facts` are the last ones seen, also while unreachable."""

    host: InventoryHost
    facts: HostFacts | None = None
    probed_at: float | None = None  # when `facts` were asked for
    reachable: bool = False
    reason: Reason | None = Reason.PROBE_STALE
    message: str = "not probed yet"
    since: float = 0.0  # reachable, or not, since then


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
        self._states = {h.name: self._new(h) for h in inventory.hosts if h.name in self._executors}
        self._probing: set[str] = set()
        # What the database says: hosts the operator cordoned (True: to be drained), and breakers
        # by host name or GPU UUID. Kept by dispatcher.quarantine.
        self.cordons: Mapping[str, bool] = {}
        self.breakers: Mapping[str, Breaker] = {}

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
        self._probing.add(name)
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
            self._probing.discard(name)
        return self._states.get(name, state)

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
        since = state.since if state.reachable else self._clock.monotonic()
        self._states[name] = replace(
            state,
            facts=facts,
            probed_at=asked,
            reachable=True,
            reason=None,
            message="",
            since=since,
        )

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
        """`host_view` with what operator and breakers hold against the host and its GPUs."""
        view = host_view(state, now, cached)
        name = view.name
        return replace(
            view,
            cordoned=view.cordoned or name in self.cordons,
            draining=self.cordons.get(name, False),
            quarantine=quarantine(self.breakers.get(name)),
            gpus=tuple(
                replace(gpu, quarantine=quarantine(self.breakers.get(gpu.uuid)))
                for gpu in view.gpus
            ),
        )

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
        self.inventory = inventory
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
        "requeue": "auto",
    }
    kept = InventoryHost(name=host.name, address=host.address)
    return host.model_copy(update={**plain, "max_parallel": kept.max_parallel, "disk": kept.disk})


def host_view(state: HostState, now: float, cached_bytes: Mapping[str, int]) -> HostView:
    """Pure: one host's state at monotonic time `now` as placement sees it."""
    host, facts = state.host, state.facts
    disk_reserve = int((host.disk.min_free_gib + host.disk.reserve_gib) * GIB)
    missing = not_ready(host, facts) if facts else ""
    return HostView(
        name=host.name,
        reachable=state.reachable,
        unreachable_reason=state.reason,
        unreachable_message=state.message,
        silent_s=0.0 if state.reachable else max(0.0, now - state.since),
        cordoned=host.cordoned,
        ready=facts is not None and not missing,
        not_ready_message=missing,
        gpus=tuple(gpu_view(gpu) for gpu in _usable(host, facts.gpus)) if facts else (),
        max_parallel=host.max_parallel.model_dump(),
        headroom_mib=host.vram_headroom_mib,
        disk_free_bytes=facts.disk_free_bytes if facts else 0,
        disk_reserve_bytes=disk_reserve,
        probe_age_s=NEVER_S if state.probed_at is None else max(0.0, now - state.probed_at),
        cached_bytes=dict(cached_bytes),
    )


def not_ready(host: InventoryHost, facts: HostFacts) -> str:
    """Why stages cannot run there, in one line with the fix; "" when they can."""
    if facts.stage_python in facts.stage_missing:
        return (
            f"{host.name}: there is no {facts.stage_python}. Run `cosma worker bootstrap "
            f"{host.name}`, or correct its stage_python in the inventory"
        )
    if facts.stage_missing:
        names = ", ".join(facts.stage_missing)
        return (
            f"{host.name}: {facts.stage_python or 'no stage Python'} lacks {names}. "
            f"Run `cosma worker bootstrap {host.name}`"
        )
    if not _usable(host, facts.gpus):
        wanted = "" if host.gpus == "auto" else f" of {', '.join(host.gpus)}"
        why = facts.gpu_error or "none was found"
        return f"{host.name}: no GPU{wanted}: {why}. Check `gpus:` and `nvidia-smi` there"
    return ""


def _usable(host: InventoryHost, gpus: Iterable[GpuFacts]) -> list[GpuFacts]:
    if host.gpus == "auto":
        return list(gpus)
    return [gpu for gpu in gpus if gpu.uuid in host.gpus]


def gpu_view(gpu: GpuFacts) -> GpuView:
    """Pure. The memory of cosma's own attempts is listed by (job, attempt), the rest is foreign."""
    own: dict[tuple[str, int], int] = {}
    foreign = 0
    for process in gpu.processes:
        if process.run_dir is not None and process.attempt is not None:
            # A run directory ends in the job's id.
            key = (PurePosixPath(process.run_dir).name, process.attempt)
            own[key] = own.get(key, 0) + process.used_mib
        else:
            foreign += process.used_mib
    if gpu.kind == "cuda":
        # What the process list leaves out (a container, another user, the driver itself).
        foreign = max(foreign, gpu.total_mib - gpu.free_mib - sum(own.values()))
    return GpuView(
        uuid=gpu.uuid,
        name=gpu.name,
        kind=gpu.kind,
        total_mib=gpu.total_mib,
        free_mib=gpu.free_mib,
        own_mib=own,
        foreign_mib=foreign,
    )
