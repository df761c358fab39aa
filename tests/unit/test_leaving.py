"""When jobs leave a host that is drained, suspect or silent, and when they stay."""

from __future__ import annotations

from dispatcher.core import model as m
from dispatcher.core.model import Job, JobState, Reason, Stage, Step
from dispatcher.core.place import Policy, place
from dispatcher.core.views import HostView
from tests.unit.farms import NOW, SUSPECT, UNFIT, at, gpu, host, job, running

POLICY = Policy()


def only_waiting(jobs: list[Job], hosts: list[HostView]) -> m.Waiting:
    decision = place(jobs, hosts, POLICY, NOW)
    (waiting,) = decision.waiting
    return waiting


def moves(jobs: list[Job], hosts: list[HostView]) -> tuple[tuple[str, str], ...]:
    decision = place(jobs, hosts, POLICY, NOW)
    assert not decision.stages
    return decision.assignments


def test_what_waits_on_a_draining_host_goes_to_another_and_what_runs_there_stays() -> None:
    drained = host("gpu-a", cordoned=True, draining=True)
    jobs = [at("waits", Stage.TRAINING), running("runs", Stage.COLMAP_RECONSTRUCTION)]
    assert moves(jobs, [drained, host("gpu-b")]) == (("waits", "gpu-b"),)


def test_a_job_no_other_host_could_take_stays_on_a_draining_host_and_says_so() -> None:
    drained = host("gpu-a", cordoned=True, draining=True)
    small = host("gpu-b", gpu(total=4000))
    waiting = only_waiting([at("j", Stage.TRAINING)], [drained, small])
    assert waiting.reason is Reason.HOST_DRAINING
    assert "cosma worker resume gpu-a" in waiting.message and "no other host" in waiting.message


def test_a_job_waits_on_a_draining_host_for_a_busy_one() -> None:
    drained = host("gpu-a", cordoned=True, draining=True)
    full = [job(f"full-{n}", host="gpu-b", state=JobState.CLAIMED, step=Step.TRANSFER)
            for n in range(2)]  # fmt: skip
    decision = place([at("j", Stage.TRAINING), *full], [drained, host("gpu-b")], POLICY, NOW)
    (waiting,) = decision.waiting
    assert waiting.reason is Reason.SLOT_BUSY and set(waiting.per_host) == {"gpu-a", "gpu-b"}


def test_a_suspect_host_keeps_its_jobs_waiting_and_an_unfit_one_loses_them() -> None:
    jobs = [at("j", Stage.TRAINING)]
    waiting = only_waiting(jobs, [host("gpu-a", quarantine=SUSPECT), host("gpu-b")])
    assert waiting.reason is Reason.HOST_QUARANTINED and "3 fast failures" in waiting.message
    assert moves(jobs, [host("gpu-a", quarantine=UNFIT), host("gpu-b")]) == (("j", "gpu-b"),)
    alone = only_waiting(jobs, [host("gpu-a", quarantine=UNFIT)])
    assert alone.reason is Reason.HOST_NOT_READY and "3 fast failures" in alone.message


def test_a_suspect_gpu_is_left_out_and_its_neighbour_is_used() -> None:
    devices = (gpu("GPU-1", quarantine=SUSPECT), gpu("GPU-2", total=9000))
    decision = place([at("j", Stage.TRAINING)], [host("gpu-a", *devices)], POLICY, NOW)
    assert [r.gpu for r in decision.stages] == ["GPU-2"]
    only = host("gpu-a", gpu(quarantine=SUSPECT))
    waiting = only_waiting([at("j", Stage.TRAINING)], [only])
    assert waiting.reason is Reason.GPU_QUARANTINED and "GPU-1 is quarantined" in waiting.message
    extracting = place([at("j", Stage.FRAME_EXTRACTION)], [only], POLICY, NOW)
    assert [r.job for r in extracting.stages] == ["j"], "its host still extracts"


def test_what_waits_on_a_host_that_stays_silent_goes_elsewhere() -> None:
    def silent(seconds: float) -> HostView:
        return host("gpu-a", reachable=False, silent_s=seconds)

    jobs = [at("j", Stage.TRAINING)]
    assert only_waiting(jobs, [silent(30.0), host("gpu-b")]).reason is Reason.HOST_UNREACHABLE
    assert moves(jobs, [silent(700.0), host("gpu-b")]) == (("j", "gpu-b"),)
