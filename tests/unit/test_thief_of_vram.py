"""A thief that takes and frees GPU memory at random, on paper: what a probe told is never promised
twice, so a device refuses only when somebody took memory after the probe that was decided on."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dispatcher.core.model import Job, JobKind, JobState, Reason, Stage, Step
from dispatcher.core.place import Policy, place
from dispatcher.fleet_view import HostState, host_view, reached
from dispatcher.inventory_model import InventoryHost, MaxParallel
from worker_agent.protocol import GpuFacts, GpuProcess, HostFacts

HEADROOM = 200
RESERVED = 100
SIZES = {"GPU-1": 12_000, "GPU-2": 24_000}
HOST = InventoryHost(
    name="a", address="a", vram_headroom_mib=HEADROOM, max_parallel=MaxParallel(train=4)
)
FACTS = HostFacts(
    protocol=1, agent_hash="h", hostname="a", boot_id="b", python="3.11.7", stage_python="python",
    stage_missing=(), cpu_count=64, ram_total_mib=256_000, ram_free_mib=256_000,
    disk_total_bytes=10**12, disk_free_bytes=10**12, gpus=(),
)  # fmt: skip


@dataclass(slots=True)
class Device:
    """The truth, which only probes tell."""

    total: int
    foreign: int = 0
    used: dict[tuple[str, int], int] = field(default_factory=dict)
    decided_on: int = 0  # foreign use in the probe that the last placement here went by

    @property
    def free(self) -> int:
        return self.total - RESERVED - self.foreign - sum(self.used.values())


class Thief(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.devices = {uuid: Device(total) for uuid, total in SIZES.items()}
        self.jobs = {f"job-{n}": waiting(f"job-{n}", 1_000 + 1_700 * n) for n in range(6)}
        self.now = 0.0
        self.state = HostState(host=HOST)
        self.told: dict[str, int] = {}
        self.probe()

    @rule(uuid=st.sampled_from(sorted(SIZES)), share=st.floats(0, 1))
    def steal(self, uuid: str, share: float) -> None:
        device = self.devices[uuid]
        device.foreign = int(share * (device.free + device.foreign))

    @rule()
    def probe(self) -> None:
        gpus = tuple(facts(uuid, device) for uuid, device in self.devices.items())
        self.now += 1.0
        self.state = reached(
            self.state, replace(FACTS, gpus=gpus), asked=self.now, now=self.now + 0.1
        )
        self.told = {uuid: device.foreign for uuid, device in self.devices.items()}
        self.now += 0.1

    @rule()
    def decide(self) -> None:
        view = host_view(self.state, self.now, {})
        decided = place(self.jobs.values(), [view], Policy(), self.now)
        for promise in decided.stages:
            assert promise.gpu is not None
            job = self.jobs[promise.job]
            self.jobs[promise.job] = replace(
                job, step=Step.RUN, attempt=promise.attempt, reservation=promise
            )
            device = self.devices[promise.gpu]
            device.used[promise.job, promise.attempt] = 0
            device.decided_on = self.told[promise.gpu]
        placed = {promise.job for promise in decided.stages}
        left = {job.id for job in self.jobs.values() if job.step is Step.PLACE} - placed
        assert {waiting.job for waiting in decided.waiting} == left - placed

    @precondition(lambda self: any(job.reservation for job in self.jobs.values()))
    @rule(data=st.data(), share=st.floats(0, 1))
    def grow(self, data: st.DataObject, share: float) -> None:
        """A training takes more, at most what it was promised."""
        job, device = self.running(data)
        assert job.reservation is not None
        key = (job.id, job.attempt)
        wanted = max(device.used[key], int(share * job.reservation.mib))
        if wanted - device.used[key] > device.free:
            assert device.foreign > device.decided_on, "out of memory, and the probe had told"
            self.end(job, device)
        else:
            device.used[key] = wanted

    @precondition(lambda self: any(job.reservation for job in self.jobs.values()))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.end(*self.running(data))

    def running(self, data: st.DataObject) -> tuple[Job, Device]:
        running = sorted(job.id for job in self.jobs.values() if job.reservation)
        job = self.jobs[data.draw(st.sampled_from(running))]
        assert job.reservation is not None and job.reservation.gpu is not None
        return job, self.devices[job.reservation.gpu]

    def end(self, job: Job, device: Device) -> None:
        """The host says so before it is probed again; the job is tried once more."""
        del device.used[job.id, job.attempt]
        self.state = replace(
            self.state, ended={**self.state.ended, (job.id, job.attempt): self.now}
        )
        self.jobs[job.id] = replace(job, step=Step.PLACE, reservation=None)

    @invariant()
    def each_promise_is_of_memory_that_exists(self) -> None:
        for uuid, total in SIZES.items():
            promised = [j.reservation for j in self.jobs.values() if j.reservation is not None]
            mine = sum(one.mib for one in promised if one.gpu == uuid)
            assert mine + HEADROOM + RESERVED <= total or not mine


def waiting(name: str, need: int) -> Job:
    return Job(
        id=name, kind=JobKind.RECONSTRUCT, acquisition="dive", name=name, auv="a", created_at=0.0,
        state=JobState.RUNNING, step=Step.PLACE, stage=Stage.TRAINING, host="a", need_mib=need,
    )  # fmt: skip


def facts(uuid: str, device: Device) -> GpuFacts:
    own = tuple(
        GpuProcess(pid=number, used_mib=mib, run_dir=f"/w/dive/{job}", attempt=attempt)
        for number, ((job, attempt), mib) in enumerate(device.used.items())
        if mib
    )
    thief = (GpuProcess(pid=999, used_mib=device.foreign, name="thief"),) if device.foreign else ()
    return GpuFacts(
        uuid=uuid, name="x", kind="cuda", total_mib=device.total, free_mib=device.free,
        reserved_mib=RESERVED, processes=own + thief,
    )  # fmt: skip


TestThief = Thief.TestCase
TestThief.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_whose_memory_it_is_stands_in_the_reason() -> None:
    thief = Thief()
    for device in thief.devices.values():
        device.foreign = device.total - RESERVED - 500
    thief.probe()
    view = host_view(thief.state, thief.now, {})
    decided = place([waiting("job-1", 6_000)], [view], Policy(), thief.now)
    (reason,) = decided.waiting
    assert reason.reason is Reason.GPU_BUSY
    assert "6000 MiB" in reason.message and "thief (pid 999)" in reason.message
