"""The fleet: facts become views, faults become reasons, a reload is a difference."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.clock import ManualClock
from dispatcher.core.breaker import Breaker, Position
from dispatcher.core.model import Reason
from dispatcher.errors import TransportError
from dispatcher.executors.base import Executor
from dispatcher.fleet import Fleet
from dispatcher.fleet_view import HostState, gpu_view, host_view, reached
from dispatcher.inventory_model import Disk, Inventory, InventoryHost, MaxParallel
from worker_agent.protocol import AttemptMemory, GpuFacts, GpuProcess, HostFacts

GPU = GpuFacts(
    uuid="GPU-1",
    name="RTX 3060",
    kind="cuda",
    total_mib=12_000,
    free_mib=5_000,
    processes=(
        GpuProcess(pid=1, used_mib=2_000, run_dir="/w/survey/job-1", attempt=3),
        GpuProcess(pid=2, used_mib=1_000, run_dir="/w/survey/job-1", attempt=3),
        GpuProcess(pid=3, used_mib=500, run_dir="/w/survey/job-2", attempt=1),
        GpuProcess(pid=4, used_mib=1_500),
    ),
)
FACTS = HostFacts(
    protocol=1,
    agent_hash="h",
    hostname="x",
    boot_id="b",
    python="3.11.7",
    stage_python="/w/venv/bin/python",
    stage_missing=(),
    cpu_count=8,
    ram_total_mib=32_000,
    ram_free_mib=16_000,
    disk_total_bytes=10**12,
    disk_free_bytes=10**11,
    gpus=(GPU, replace(GPU, uuid="GPU-2", processes=(), free_mib=12_000)),
)
HOST = InventoryHost(
    name="a",
    address="a",
    max_parallel=MaxParallel(train=2),
    disk=Disk(min_free_gib=2, reserve_gib=3),
)


def test_memory_of_own_attempts_is_listed_and_never_counted_as_foreign() -> None:
    view = gpu_view(GPU)
    assert view.own_mib == {("job-1", 3): 3_000, ("job-2", 1): 500}
    # 7000 MiB are used, 3500 of them by cosma: the rest is foreign, listed or not.
    assert view.foreign_mib == 3_500
    assert view.holders == (
        ("a process that the driver does not list", 2_000),
        ("a process (pid 4)", 1_500),
    )


def test_a_host_view_carries_what_placement_needs() -> None:
    state = HostState(host=HOST, facts=FACTS, probed_at=100.0, reachable=True, reason=None)
    view = host_view(state, 107.5, {"job-9": 5})
    assert view.reachable and view.ready and not view.cordoned
    assert [gpu.uuid for gpu in view.gpus] == ["GPU-1", "GPU-2"]
    assert view.max_parallel == {"extract": 1, "sfm": 1, "train": 2, "stitch": 1}
    assert (view.headroom_mib, view.disk_reserve_bytes) == (512, 5 * 1024**3)
    assert (view.probe_age_s, view.cached_bytes) == (7.5, {"job-9": 5})


def test_only_the_gpus_of_the_inventory_are_offered() -> None:
    some = HOST.model_copy(update={"gpus": ("GPU-2",)})
    state = HostState(host=some, facts=FACTS, probed_at=0.0, reachable=True, reason=None)
    assert [gpu.uuid for gpu in host_view(state, 0.0, {}).gpus] == ["GPU-2"]
    none = replace(state, host=HOST.model_copy(update={"gpus": ("GPU-9",)}))
    view = host_view(none, 0.0, {})
    # Its CPU stages may go on.
    assert view.ready and view.gpus == () and "GPU-9" in view.gpu_error


def test_a_host_that_lacks_something_is_not_ready_and_says_what_to_run() -> None:
    facts = replace(FACTS, stage_missing=("torch", "ffmpeg"))
    state = HostState(host=HOST, facts=facts, probed_at=0.0, reachable=True, reason=None)
    view = host_view(state, 0.0, {})
    assert not view.ready
    assert "torch, ffmpeg" in view.not_ready_message and view.not_ready_message[:2] != "a:"
    assert "cosma worker bootstrap a" in view.not_ready_message


class ScriptedHost:
    """Answers probes with what the test says; everything else is not part of probing."""

    def __init__(self) -> None:
        self.answer: HostFacts | Exception | asyncio.Event = FACTS
        self.probes = 0
        self.asked = asyncio.Event()
        self.closed = False

    async def probe(self, timeout_s: float = 30.0) -> HostFacts:
        self.probes += 1
        self.asked.set()
        answer = self.answer
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            return FACTS
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def close(self) -> None:
        self.closed = True


def two() -> tuple[Fleet, dict[str, ScriptedHost], ManualClock, Callable[..., Executor]]:
    clock = ManualClock()
    hosts: dict[str, ScriptedHost] = {}

    def make(host: InventoryHost) -> Executor:
        hosts[host.name] = ScriptedHost()
        return cast(Executor, hosts[host.name])

    b = HOST.model_copy(update={"name": "b", "address": "b"})
    return Fleet.of(Inventory(hosts=(HOST, b)), make, clock=clock), hosts, clock, make


async def test_a_failed_probe_keeps_the_last_facts_and_says_since_when() -> None:
    fleet, hosts, clock, _ = two()
    assert all(view.probe_age_s > 1e6 and not view.reachable for view in fleet.host_views())
    clock.advance(10)
    await fleet.probe_all()
    clock.advance(5)
    hosts["b"].answer = TransportError(Reason.HOST_UNREACHABLE, "gone", where="b")
    await fleet.probe_all()
    a, b = fleet.host_views()
    assert a.reachable and a.probe_age_s == 0
    assert not b.reachable and b.unreachable_reason is Reason.HOST_UNREACHABLE
    # Without its name, which whoever shows it says.
    assert b.gpus and b.probe_age_s == 5 and b.unreachable_message == "gone"
    clock.advance(5)
    await fleet.probe_all()
    state = fleet.state("b")
    assert state is not None and state.since == 15  # the first of both failures
    hosts["b"].answer = FACTS
    await fleet.probe("b")
    assert fleet.host_views()[1].reachable


async def test_one_probe_of_a_host_runs_at_a_time() -> None:
    fleet, hosts, _, _ = two()
    release = asyncio.Event()
    hosts["a"].answer = release
    first = asyncio.ensure_future(fleet.probe("a"))
    await hosts["a"].asked.wait()
    await fleet.probe_all()  # does not wait for the hanging one
    assert hosts["a"].probes == 1 and fleet.host_views()[1].reachable
    release.set()
    assert (await first).reachable


async def test_cordons_drains_and_breakers_show_in_the_views() -> None:
    fleet, _, _, _ = two()
    await fleet.probe_all()
    opened = Breaker(key="GPU-1", host="b", gpu="GPU-1", position=Position.OPEN, why="Xid 79")
    fleet.cordons = {"a": False, "b": True}
    fleet.breakers = {"GPU-1": opened, "a": replace(opened, key="a", host="a", gpu=None)}
    a, b = fleet.host_views()
    assert (a.cordoned, a.draining, b.cordoned, b.draining) == (True, False, True, True)
    assert a.quarantine is not None and "cosma worker resume a" in a.quarantine.line
    assert b.quarantine is None
    shown = {gpu.uuid: gpu.quarantine for gpu in b.gpus}
    assert shown["GPU-2"] is None
    assert shown["GPU-1"] is not None and "Xid 79" in shown["GPU-1"].line
    fleet.cordons, fleet.breakers = {}, {}
    assert not any(v.cordoned or v.draining or v.quarantine for v in fleet.host_views())


async def test_a_silent_host_is_silent_since_it_was_last_seen() -> None:
    fleet, hosts, clock, _ = two()
    await fleet.probe_all()
    hosts["b"].answer = TransportError(Reason.HOST_UNREACHABLE, "gone", where="b")
    clock.advance(30)
    await fleet.probe_all()
    clock.advance(12)
    assert [view.silent_s for view in fleet.host_views()] == [0.0, 12.0]


async def test_a_reload_keeps_connections_that_did_not_change() -> None:
    fleet, hosts, _, make = two()
    await fleet.probe_all()
    kept, dropped = hosts["a"], hosts["b"]
    cordoned = HOST.model_copy(update={"cordoned": True, "vram_headroom_mib": 1})
    added = HOST.model_copy(update={"name": "c", "address": "c"})
    changes = await fleet.reload(Inventory(hosts=(cordoned, added)), make)
    assert (changes.added, changes.removed, changes.changed) == (("c",), ("b",), ("a",))
    assert hosts["a"] is kept and not kept.closed and dropped.closed
    views = {view.name: view for view in fleet.host_views()}
    assert views["a"].cordoned and views["a"].reachable and views["a"].headroom_mib == 1
    assert not views["c"].reachable
    moved = HOST.model_copy(update={"port": 2222})
    await fleet.reload(Inventory(hosts=(moved,)), make)
    assert kept.closed and hosts["a"] is not kept
    assert not fleet.host_views()[0].reachable


async def test_a_link_is_as_fast_as_what_came_over_it() -> None:
    fleet = two()[0]
    fleet.brought("a", 1 << 20, 0.001)
    fleet.brought("elsewhere", 1 << 30, 1.0)
    assert {view.link_bytes_s for view in fleet.host_views()} == {0.0}, "too little to tell"
    fleet.brought("a", 800_000_000, 10.0)
    link = {view.name: view.link_bytes_s for view in fleet.host_views()}["a"]
    assert link == pytest.approx(80e6, rel=0.13)
    before = fleet.state("a")
    fleet.brought("a", 810_000_000, 10.0)
    assert fleet.state("a") is before, "nothing to decide anew"
    for _ in range(8):
        fleet.brought("a", 100_000_000, 10.0)
    link = {view.name: view.link_bytes_s for view in fleet.host_views()}["a"]
    assert link == pytest.approx(10e6, rel=0.2)


async def test_what_an_ended_attempt_held_is_free_before_the_next_probe_says_so() -> None:
    fleet, hosts, clock, _ = two()
    await fleet.probe_all()
    clock.advance(1)
    fleet.attempt_ended("a", "job-1", 3)
    fleet.attempt_ended("gone", "job-1", 3)
    gpu = fleet.host_views()[0].gpus[0]
    assert (gpu.free_mib, gpu.own_mib, gpu.foreign_mib) == (8_000, {("job-2", 1): 500}, 3_500)
    # A probe that was asked before the end may still show it; one asked later shows the truth.
    state = fleet.state("a")
    assert state is not None
    late = reached(state, FACTS, asked=0.5, now=2.0)
    assert host_view(late, 2.0, {}).gpus[0].free_mib == 8_000
    clock.advance(1)
    await fleet.probe_all()
    assert fleet.host_views()[0].gpus[0].free_mib == 5_000
    assert hosts["a"].probes == 2


def told(*uuids: str, error: str = "") -> HostFacts:
    return replace(FACTS, gpus=tuple(replace(GPU, uuid=uuid) for uuid in uuids), gpu_error=error)


async def test_a_gpu_that_does_not_answer_keeps_its_figures_their_age_and_gets_no_work() -> None:
    fleet, hosts, clock, _ = two()
    await fleet.probe_all()
    hosts["a"].answer = told("GPU-2", error="GPU 0: did not answer within 5 s")
    for _ in range(2):
        clock.advance(10)
        await fleet.probe_all()
    view = fleet.host_views()[0]
    assert view.reachable and view.ready and "GPU 0: did not answer" in view.gpu_error
    by_uuid = {gpu.uuid: gpu for gpu in view.gpus}
    assert by_uuid["GPU-2"].quarantine is None and by_uuid["GPU-2"].probe_age_s == 0
    silent = by_uuid["GPU-1"]
    assert (silent.probe_age_s, silent.free_mib) == (20, 5_000)
    assert silent.quarantine is not None and not silent.quarantine.failed_test
    assert "did not answer" in silent.quarantine.line
    clock.advance(101)
    lost = {gpu.uuid: gpu.quarantine for gpu in fleet.host_views()[0].gpus}["GPU-1"]
    assert lost is not None and lost.failed_test  # what waits for it goes elsewhere
    hosts["a"].answer = FACTS
    await fleet.probe_all()
    assert all(gpu.quarantine is None for gpu in fleet.host_views()[0].gpus)
    hosts["a"].answer = told("GPU-2")  # taken out of the host, or into MIG mode
    await fleet.probe_all()
    assert [gpu.uuid for gpu in fleet.host_views()[0].gpus] == ["GPU-2"]


def process(used: int | None, *, ours: int | None = None, decodes: bool = False) -> GpuProcess:
    run_dir = None if ours is None else f"/w/survey/job-{ours}"
    return GpuProcess(pid=9, used_mib=used, run_dir=run_dir, attempt=ours, decodes=decodes)


def on_gpu(*processes: GpuProcess, free: int, **more: Any) -> GpuFacts:
    return replace(GPU, processes=processes, free_mib=free, reserved_mib=400, **more)


def test_each_mib_in_use_is_somebodys_and_counted_once() -> None:
    view = gpu_view(on_gpu(process(3_000, ours=1), process(1_000), free=7_000))
    assert (view.own_mib, view.foreign_mib) == ({("job-1", 1): 3_000}, 2_000)
    assert dict(view.holders) == {
        "a process (pid 9)": 1_000, "a process that the driver does not list": 600,
        "the driver": 400,
    }  # fmt: skip
    # The driver hides what processes use: all of it is ours where all of them are.
    hidden = gpu_view(on_gpu(process(None, ours=1), process(None, ours=2), free=5_599))
    assert hidden.own_mib == {("job-1", 1): 3_001, ("job-2", 2): 3_000}
    assert (hidden.foreign_mib, dict(hidden.holders)) == (400, {"the driver": 400})
    # With a stranger among them nobody can tell, and none of it may be promised again.
    mixed = gpu_view(on_gpu(process(None, ours=1), process(None), free=5_600))
    assert (mixed.own_mib, mixed.foreign_mib) == ({("job-1", 1): 0}, 6_400)


@given(
    st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 9_000)), st.none() | st.integers(1, 3))),
    st.integers(0, 12_000),
)
def test_what_is_in_use_is_never_less_than_own_and_foreign(
    uses: list[tuple[int | None, int | None]], free: int
) -> None:
    gpu = on_gpu(*(process(used, ours=ours) for used, ours in uses), free=free)
    view = gpu_view(gpu)
    in_use = gpu.total_mib - free
    assert view.foreign_mib + sum(view.own_mib.values()) >= in_use
    assert sum(mib for _, mib in view.holders) == view.foreign_mib
    listed = sum(used or 0 for used, _ in uses)
    if listed <= in_use:  # else it was measured while it changed
        assert view.foreign_mib + sum(view.own_mib.values()) == in_use


def test_the_decoder_is_counted_for_others_and_ours_is_promised() -> None:
    busy = on_gpu(
        process(10, decodes=True), process(10, ours=1, decodes=True), free=9_000,
        has_decoder=True, decoder_percent=50,
    )  # fmt: skip
    view = gpu_view(busy, max_decode_sessions=4)
    assert (view.decode_sessions, view.max_decode_sessions) == (1, 4)
    unseen = gpu_view(replace(busy, processes=()), max_decode_sessions=4)
    assert unseen.decode_sessions == 1
    assert (
        gpu_view(replace(busy, has_decoder=False), max_decode_sessions=4).max_decode_sessions == 0
    )


def test_ram_and_cores_are_the_hosts_and_a_cpu_device_is_its_ram() -> None:
    cpu = GpuFacts(uuid="CPU-1", name="x", kind="cpu", total_mib=32_000, free_mib=16_000)
    own = (AttemptMemory(run_dir="/w/survey/job-1", attempt=3, used_mib=900),)
    state = HostState(
        host=HOST, facts=replace(FACTS, gpus=(cpu,), ram_own=own), probed_at=0.0, reachable=True,
        reason=None,
    )  # fmt: skip
    view = host_view(state, 0.0, {})
    assert (view.cpu_cores, view.ram_total_mib, view.ram_free_mib) == (8, 32_000, 16_000)
    assert view.ram_own_mib == view.gpus[0].own_mib == {("job-1", 3): 900}
    nothing = replace(state, host=HOST.model_copy(update={"gpus": ()}))
    empty = host_view(nothing, 0.0, {})
    assert empty.ready and empty.gpus == () and empty.gpu_error == ""
