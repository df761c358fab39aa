"""Facts of a host -> what placement sees of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from dispatcher.core.breaker import Breaker, quarantine
from dispatcher.core.model import Reason
from dispatcher.core.policy import rounded_up
from dispatcher.core.pool import Pool, PoolState, pool_key, pools, refusal
from dispatcher.core.views import GpuView, HostView, Quarantine, released
from dispatcher.inventory_model import Inventory, InventoryHost
from worker_agent.protocol import GpuFacts, GpuProcess, HostFacts

GIB = 1 << 30
# Placement sees a host that was never probed as one whose probe is this old.
NEVER_S = 1e9
# A GPU that is silent for longer is no longer waited for: what waits for it goes elsewhere.
LOST_GPU_S = 120.0
LINK_FROM = 16 << 20  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SilentGpu:
    """What a GPU last said, before a probe in which it alone, or its driver, did not answer."""

    facts: GpuFacts
    probed_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HostState:
    """Times are monotonic seconds. `facts` are the last ones seen, also while unreachable."""

    host: InventoryHost
    facts: HostFacts | None = None
    probed_at: float | None = None  # when `facts` were asked for
    silent: tuple[SilentGpu, ...] = ()  # not in `facts`
    # Attempts (job, attempt) whose processes have ended since `facts` were asked for, and when:
    # what they are seen to use is free, and nothing has to wait for the next probe to say so.
    ended: Mapping[tuple[str, int], float] = field(default_factory=dict)
    reachable: bool = False
    reason: Reason | None = Reason.PROBE_STALE
    message: str = "not probed yet"
    since: float = 0.0  # reachable, or not, since then
    link_bytes_s: float = 0.0  # by what came there; 0: nothing large has


def reached(state: HostState, facts: HostFacts, *, asked: float, now: float) -> HostState:
    """The state after a probe that was answered."""
    return replace(
        state,
        facts=facts,
        probed_at=asked,
        silent=tuple(_silent(state, facts)),
        ended={key: at for key, at in state.ended.items() if at >= asked},
        reachable=True,
        reason=None,
        message="",
        since=state.since if state.reachable else now,
    )


def _silent(before: HostState, facts: HostFacts) -> Iterator[SilentGpu]:
    """GPUs that were seen before and are missing now; without an error they are truly gone."""
    if not facts.gpu_error:
        return
    answered = {gpu.uuid for gpu in facts.gpus}
    if before.facts is not None and before.probed_at is not None:
        for gpu in before.facts.gpus:
            if gpu.kind == "cuda" and gpu.uuid not in answered:
                yield SilentGpu(facts=gpu, probed_at=before.probed_at)
    yield from (silent for silent in before.silent if silent.facts.uuid not in answered)


def brought(state: HostState, size: int, seconds: float) -> HostState:
    """The state after `size` bytes came there in `seconds`. The newest counts half; to four binary
    digits, so that most change nothing. Of little the link is not what took the time."""
    if size < LINK_FROM or seconds <= 0.0:
        return state
    rate = size / seconds
    mean = float(rounded_up(int(((state.link_bytes_s or rate) + rate) / 2), 4))
    return state if mean == state.link_bytes_s else replace(state, link_bytes_s=mean)


def host_view(state: HostState, now: float, cached_bytes: Mapping[str, int]) -> HostView:
    """One host's state at monotonic time `now` as placement sees it."""
    host, facts = state.host, state.facts
    missing = not_ready(host, facts) if facts else ""
    own = _by_attempt((m.run_dir, m.attempt, m.used_mib) for m in facts.ram_own) if facts else {}
    view = HostView(
        name=host.name,
        reachable=state.reachable,
        unreachable_reason=state.reason,
        # Whoever shows a view says which host it is of.
        unreachable_message=state.message.removeprefix(f"{host.name}: "),
        silent_s=0.0 if state.reachable else max(0.0, now - state.since),
        cordoned=host.cordoned,
        cordoned_in_inventory=host.cordoned,
        ready=facts is not None and not missing,
        not_ready_message=missing.removeprefix(f"{host.name}: "),
        gpus=tuple(_gpus(state, now, own)),
        gpu_error=no_gpu(state),
        max_parallel=host.max_parallel.model_dump(),
        headroom_mib=host.vram_headroom_mib,
        cpu_cores=facts.cpu_count if facts else 0,
        ram_total_mib=facts.ram_total_mib if facts else 0,
        ram_free_mib=facts.ram_free_mib if facts else 0,
        ram_own_mib=own,
        disk_total_bytes=facts.disk_total_bytes if facts else 0,
        disk_free_bytes=facts.disk_free_bytes if facts else 0,
        disk_reserve_bytes=int((host.disk.min_free_gib + host.disk.reserve_gib) * GIB),
        probe_age_s=_age(state.probed_at, now),
        cached_bytes=dict(cached_bytes),
        link_bytes_s=state.link_bytes_s,
    )
    return released(view, state.ended.keys()) if state.ended else view


def held_against(
    view: HostView, cordons: Mapping[str, bool], breakers: Mapping[str, Breaker]
) -> HostView:
    """With what operator and breakers hold against the host and its GPUs. `cordons`: cordoned
    hosts, True for those to be drained; `breakers`: by host name or GPU UUID."""
    name = view.name
    if not cordons and not breakers:
        return view
    return replace(
        view,
        cordoned=view.cordoned or name in cordons,
        draining=cordons.get(name, False),
        quarantine=quarantine(breakers.get(name)),
        gpus=tuple(
            replace(gpu, quarantine=_suspicion(gpu, breakers.get(gpu.uuid))) for gpu in view.gpus
        ),
    )


def _suspicion(gpu: GpuView, breaker: Breaker | None) -> Quarantine | None:
    """By its breaker, or because it is silent, or both."""
    held = quarantine(breaker)
    if held is None or gpu.quarantine is None:
        return held or gpu.quarantine
    return replace(held, silent=gpu.quarantine.silent)


def pools_of(inventory: Inventory) -> dict[str, Pool]:
    """The thin pools that hosts' disks lie in, by key."""
    return pools(
        (host.name, pool.host, pool.vg, pool.pool, pool.high_watermark)
        for host in inventory.hosts
        if (pool := host.disk.thin_pool) is not None
    )


def over_pool(
    view: HostView,
    host: InventoryHost,
    known: Mapping[str, Pool],
    states: Mapping[str, PoolState],
    now: float,
) -> HostView:
    """With what the thin pool below the host's disk holds against new work there. `known`: of
    `pools_of`; `now` is on the clock of the states."""
    named = host.disk.thin_pool
    if named is None:
        return view
    key = pool_key(named.host, named.vg, named.pool)
    return replace(view, storage=refusal(known[key], states.get(key), now))


def _age(probed_at: float | None, now: float) -> float:
    return NEVER_S if probed_at is None else max(0.0, now - probed_at)


def _gpus(state: HostState, now: float, ram_own: dict[tuple[str, int], int]) -> Iterator[GpuView]:
    """Those of the inventory. One that does not answer keeps its last figures, with their age,
    and gets no work until it answers again."""
    host, facts = state.host, state.facts
    if facts is None:
        return
    age = _age(state.probed_at, now)
    for gpu in facts.gpus:
        if _offered(host, gpu):
            own = ram_own if gpu.kind == "cpu" else {}
            yield gpu_view(gpu, own, max_decode_sessions=host.max_decode_sessions, age_s=age)
    for silent in state.silent:
        if _offered(host, silent.facts):
            silent_s = _age(silent.probed_at, now)
            seen = gpu_view(
                silent.facts, max_decode_sessions=host.max_decode_sessions, age_s=silent_s
            )
            lost = silent_s > LOST_GPU_S
            yield replace(
                seen,
                quarantine=Quarantine(
                    line=f"silent: {facts.gpu_error}", failed_test=lost, silent=True
                ),
            )


def _offered(host: InventoryHost, gpu: GpuFacts) -> bool:
    return host.gpus == "auto" or gpu.uuid in host.gpus


def not_ready(host: InventoryHost, facts: HostFacts) -> str:
    """Why no stage can run there, in one line with the fix; "" when some can."""
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
    return ""


def no_gpu(state: HostState) -> str:
    """What is wrong with the GPUs of a probed host, in one line with the fix; "" when nothing is.
    Stages that need no GPU run there all the same."""
    host, facts = state.host, state.facts
    if facts is None or host.gpus == ():
        return ""
    if facts.gpu_error:
        return f"{host.name}: {facts.gpu_error}. Run `nvidia-smi` there"
    absent = set() if host.gpus == "auto" else set(host.gpus).difference(g.uuid for g in facts.gpus)
    if absent:
        names = ", ".join(sorted(absent))
        return f"{host.name}: there is no GPU {names}. Check `gpus:` against `nvidia-smi -L` there"
    return ""


def gpu_view(
    gpu: GpuFacts,
    ram_own: Mapping[tuple[str, int], int] | None = None,
    *,
    max_decode_sessions: int = 0,
    age_s: float = 0.0,
) -> GpuView:
    """The memory of cosma's own attempts is listed by (job, attempt), the rest is foreign.

    `ram_own` is what attempts use of a device of kind "cpu". A device's memory in use is
    own + foreign, each MiB once: what the process list leaves out (the driver itself, another
    container) is foreign, unless it can only belong to attempts whose use the driver hides.
    """
    if gpu.kind == "cpu":
        return GpuView(
            uuid=gpu.uuid,
            name=gpu.name,
            kind=gpu.kind,
            total_mib=gpu.total_mib,
            free_mib=gpu.free_mib,
            own_mib=dict(ram_own or {}),
            probe_age_s=age_s,
        )
    ours = [p for p in gpu.processes if p.run_dir is not None]
    others = [p for p in gpu.processes if p.run_dir is None]
    own = _by_attempt((p.run_dir or "", p.attempt or 0, p.used_mib or 0) for p in ours)
    in_use = gpu.total_mib - gpu.free_mib
    listed = sum(p.used_mib or 0 for p in others)
    unlisted = max(0, in_use - gpu.reserved_mib - sum(own.values()) - listed)
    hidden = _by_attempt((p.run_dir or "", p.attempt or 0, 0) for p in ours if p.used_mib is None)
    if hidden and not others:
        # Counted as foreign, it would be taken off a second time beside their reservations.
        share, rest = divmod(unlisted, len(hidden))
        for at, key in enumerate(sorted(hidden)):
            own[key] += share + (at < rest)
        unlisted = 0
    foreign = max(listed, in_use - sum(own.values()))
    holders = [(_whose(p), p.used_mib) for p in others if p.used_mib]
    if foreign > listed:
        kept = min(gpu.reserved_mib, foreign - listed)
        holders += [("the driver", kept)] if kept else []
        unseen = foreign - listed - kept
        holders += [(_unseen(others), unseen)] if unseen else []
    decoding = sum(p.decodes for p in others)
    if gpu.decoder_percent and not any(p.decodes for p in gpu.processes):
        decoding += 1  # somebody who is not on the list
    return GpuView(
        uuid=gpu.uuid,
        name=gpu.name,
        kind=gpu.kind,
        total_mib=gpu.total_mib,
        free_mib=gpu.free_mib,
        own_mib=own,
        foreign_mib=foreign,
        holders=tuple(sorted(holders, key=lambda holder: (-holder[1], holder[0]))),
        decode_sessions=decoding,
        max_decode_sessions=max_decode_sessions if gpu.has_decoder else 0,
        probe_age_s=age_s,
    )


def _whose(process: GpuProcess) -> str:
    name = process.name or "a process"
    return (
        f"{name} of {process.user} (pid {process.pid})"
        if process.user
        else (f"{name} (pid {process.pid})")
    )


def _unseen(others: Iterable[GpuProcess]) -> str:
    hiding = [_whose(process) for process in others if process.used_mib is None]
    return " and ".join(hiding) or "a process that the driver does not list"


def _by_attempt(uses: Iterable[tuple[str, int, int]]) -> dict[tuple[str, int], int]:
    """(run_dir, attempt, MiB) -> MiB by (job, attempt): a run directory ends in the job's id."""
    found: dict[tuple[str, int], int] = {}
    for run_dir, attempt, mib in uses:
        key = (PurePosixPath(run_dir).name, attempt)
        found[key] = found.get(key, 0) + mib
    return found
