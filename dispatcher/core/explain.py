"""Of each GPU that a waiting job could use: the first test that fails there, with its numbers.
Pure."""

from __future__ import annotations

from dataclasses import dataclass

from dispatcher.core.board import Board
from dispatcher.core.ledger import Ledger, Refusal
from dispatcher.core.model import Job, Reason, Waiting
from dispatcher.core.need import GPU_STAGES
from dispatcher.core.policy import device_stage
from dispatcher.core.snapshot import Snapshot
from dispatcher.core.stage_starts import useless, why_not_on
from dispatcher.core.views import GpuView


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTest:
    """`free_mib`: what may still be promised there, headroom taken off; it may be less than
    nothing. `reason` None: nothing about the device keeps the job off it."""

    host: str
    gpu: GpuView
    headroom_mib: int
    needs_mib: int
    free_mib: int
    reason: Reason | None
    why: str


def device_tests(snapshot: Snapshot, waiting: Waiting) -> tuple[DeviceTest, ...]:
    """After the next decision, in the order of `waiting.per_host`; none where the job has the stage
    that uses a device behind it."""
    (job,) = (one for one in snapshot.jobs if one.id == waiting.job)
    stage = device_stage(job)
    if stage is None or waiting.reason is Reason.BACKOFF:
        return ()
    board = Board(snapshot.policy)
    for host in snapshot.hosts:
        board.put_host(host)
    for one in snapshot.jobs:
        board.put_job(one)
    board.decide(snapshot.now)
    tests = []
    for name in filter(board.hosts.__contains__, waiting.per_host):
        ledger, on_host = board.refused_by(name, job.id)
        for gpu in ledger.host.gpus:
            found = _first(ledger, job, gpu, on_host)
            tests.append(
                DeviceTest(
                    host=name,
                    gpu=gpu,
                    headroom_mib=ledger.host.headroom_mib,
                    needs_mib=snapshot.policy.need(job, gpu, stage).vram_mib,
                    free_mib=ledger.free_mib(gpu),
                    reason=found[0] if found else None,
                    why=found[1] if found else "",
                )
            )
    return tuple(tests)


def _first(ledger: Ledger, job: Job, gpu: GpuView, on_host: Refusal | None) -> Refusal | None:
    """`on_host`: why the host does not take or start the job."""
    if job.host != ledger.host.name:
        return ledger.shut(assigning=True) or useless(ledger, job, gpu) or on_host
    return why_not_on(ledger, job, gpu) if job.stage in GPU_STAGES else on_host
