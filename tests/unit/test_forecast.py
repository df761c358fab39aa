"""The forecast: the real decisions on a virtual clock, each job to its end, each second counted."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.core.forecast import (
    Seconds,
    likely,
    play,
)
from dispatcher.core.forecast_result import Decided
from dispatcher.core.model import (
    RECONSTRUCT_STAGES,
    SETTLED,
    Job,
    JobKind,
    JobState,
    Layer,
    Reason,
    Reservation,
    Stage,
    Step,
)
from dispatcher.core.need import Need, Needs, Span
from dispatcher.core.outlook import drawn, look_ahead, quantile, stretched
from dispatcher.core.place import SLOT_OF, Policy
from dispatcher.core.plan import SegmentView, Sooner
from dispatcher.core.snapshot import Snapshot, Underway
from dispatcher.core.views import GpuView, HostView

GIB = 1 << 30
NOW = 1000.0


def gpu(uuid: str, total: int = 24_000) -> GpuView:
    return GpuView(uuid=uuid, name="RTX", kind="cuda", total_mib=total, free_mib=total)


def host(name: str, *gpus: GpuView, **values: object) -> HostView:
    base = HostView(
        name=name, reachable=True, gpus=gpus or (gpu(f"GPU-{name}"),), disk_free_bytes=500 * GIB
    )
    return dataclasses.replace(base, **values)  # type: ignore[arg-type]


def job(name: str, auv: str = "a", **values: object) -> Job:
    base = Job(
        id=name, kind=JobKind.RECONSTRUCT, acquisition="reef", name=name, auv=auv, created_at=1.0
    )
    return dataclasses.replace(base, **values)  # type: ignore[arg-type]


def snapshot(jobs: list[Job], *hosts: HostView, **values: object) -> Snapshot:
    segments = tuple(
        SegmentView(job=j.id, auv=j.auv or "", name=j.name, state=j.state)
        for j in jobs
        if j.kind is JobKind.RECONSTRUCT
    )
    base = Snapshot(
        now=NOW, jobs=tuple(jobs), hosts=hosts, policy=Policy(),
        segments={"reef": segments},
    )  # fmt: skip
    return dataclasses.replace(base, **values)  # type: ignore[arg-type]


def train_only(job: Job, _gpu: GpuView | None, _need: Need) -> float:
    return 100.0 if job.stage is Stage.TRAINING else 0.0


# --- every second is counted, and none twice ---


def test_one_job_takes_its_transfer_and_the_sum_of_its_stages() -> None:
    link = 10e6
    farm = snapshot([job("one", input_bytes=10**9)], host("h", link_bytes_s=link))
    run = play(farm, seconds=lambda j, _gpu, _need: 10.0 + RECONSTRUCT_STAGES.index(j.stage))
    assert run.ended["one"] == pytest.approx(NOW + 10**9 / link + sum(range(10, 18)))


def test_a_link_that_was_never_measured_is_taken_for_a_gigabit() -> None:
    farm = snapshot([job("one", input_bytes=10**9)], host("h"))
    run = play(farm, seconds=lambda *_: 0.0)
    assert run.ended["one"] == pytest.approx(NOW + 10**9 / Policy().link_bytes_s)


def test_inputs_for_one_host_follow_one_another_on_its_link() -> None:
    link = 10e6
    farm = snapshot(
        [job("one", input_bytes=10**9), job("two", input_bytes=10**9)],
        host("h", gpu("GPU-1"), gpu("GPU-2"), link_bytes_s=link),
    )
    ends = play(farm, seconds=lambda *_: 0.0).ended
    assert ends["one"] == pytest.approx(NOW + 10**9 / link)
    assert ends["two"] == pytest.approx(NOW + 2 * 10**9 / link)


def test_a_job_leaves_a_drained_host_with_what_it_has_made() -> None:
    waiting = job(
        "one", host="h", state=JobState.RUNNING, stage=Stage.TRAINING, attempt=5,
        input_bytes=10**9,
    )  # fmt: skip
    farm = snapshot([waiting], host("h", draining=True), host("i", link_bytes_s=10e6))
    trace: list[Decided] = []
    run = play(farm, seconds=train_only, trace=trace)
    assert run.ended["one"] == pytest.approx(NOW + 100.0 + 100.0)  # bytes over the link, training
    first = next(one for one in trace if one.stage is not None)
    assert (first.stage, first.host) == (Stage.TRAINING, "i")


def test_on_one_gpu_the_makespan_is_the_sum_of_what_needs_it() -> None:
    segments = [job(f"s{n}") for n in range(7)]
    farm = snapshot(segments, host("h", max_parallel={"train": 1}))
    trace: list[Decided] = []
    run = play(farm, seconds=train_only, trace=trace)
    assert max(run.ended.values()) == pytest.approx(NOW + 7 * 100.0)
    trained = [d.at for d in trace if d.stage is Stage.TRAINING]
    assert trained == pytest.approx([NOW + 100.0 * n for n in range(7)])


def test_two_hosts_halve_it() -> None:
    farm = snapshot([job(f"s{n}") for n in range(8)], host("h"), host("i"))
    assert play(farm, seconds=train_only).ended["reef-stitch-a-v1"] == pytest.approx(NOW + 400.0)


def test_deciding_in_ticks_only_delays() -> None:
    farm = snapshot([job(f"s{n}") for n in range(6)], host("h", gpu("GPU-1"), gpu("GPU-2")))

    def uneven(one: Job, _gpu: GpuView | None, _need: Need) -> float:
        return 1.0 + zlib.crc32(f"{one.id}{one.stage}".encode()) % 17

    exact, coarse = play(farm, seconds=uneven), play(farm, seconds=uneven, tick_s=7.0)
    assert coarse.rounds < exact.rounds
    assert exact.end <= coarse.end <= exact.end + 7.0 * exact.rounds
    assert coarse.ended.keys() == exact.ended.keys()


# --- every job ends, or says why not ---


@st.composite
def farms(draw: st.DrawFn) -> Snapshot:
    hosts = [
        host(
            f"h{n}",
            *(
                gpu(f"GPU-{n}{k}", draw(st.sampled_from([8000, 12_000, 24_000])))
                for k in range(draw(st.integers(1, 2)))
            ),
            link_bytes_s=draw(st.sampled_from([0.0, 1e6, 1e8])),
        )
        for n in range(draw(st.integers(1, 3)))
    ]
    jobs = [
        job(
            f"s{n}",
            auv=draw(st.sampled_from("ab")),
            input_bytes=draw(st.integers(0, 40)) * GIB,
            priority=draw(st.integers(0, 2)),
            not_before=draw(st.sampled_from([0.0, NOW + 50.0])),
        )
        for n in range(draw(st.integers(1, 8)))
    ]
    return snapshot(jobs, *hosts)


FAULTS = (
    None, None, None, Reason.STAGE_CRASHED, Reason.GPU_OUT_OF_MEMORY, Reason.HOST_REBOOTED,
    Reason.DECODE_FAILED, Reason.CONFIG_INVALID, Reason.OUT_OF_MEMORY,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(farms(), st.integers(0, 1000), st.sampled_from([0.0, 5.0]))
def test_every_job_ends_or_is_left_with_a_reason(farm: Snapshot, seed: int, tick_s: float) -> None:
    def fault(one: Job) -> tuple[Reason, float] | None:
        key = f"{seed}/{one.id}/{one.attempt}/{one.stage}"
        reason = FAULTS[zlib.crc32(key.encode()) % len(FAULTS)]
        return None if reason is None else (reason, 0.5)

    run = play(farm, seconds=drawn(seed), fault=fault, tick_s=tick_s)
    left = {waiting.job: waiting for waiting in run.left}
    for name, one in run.jobs.items():
        assert one.reservation is None
        assert (one.state in SETTLED) == (name in run.ended)
        assert one.state in SETTLED or left[name].message
    if all(one.state is JobState.DONE for one in run.jobs.values()):
        auvs = {one.auv for one in farm.jobs}
        crossed = [n for n in run.jobs if n.startswith("reef-stitch-cross")]
        assert len(crossed) == (1 if len(auvs) == 2 else 0)


@settings(max_examples=30, deadline=None)
@given(farms())
def test_the_same_snapshot_has_the_same_future(farm: Snapshot) -> None:
    assert play(farm, seconds=drawn(3)) == play(farm, seconds=drawn(3))


def test_a_job_that_fits_nowhere_is_left_with_its_reason_and_its_siblings_end() -> None:
    farm = snapshot([job("big", need_mib=900_000), job("small")], host("h"))
    run = play(farm)
    assert set(run.ended) == {"small"}
    (waiting,) = run.left
    assert (waiting.job, waiting.reason) == ("big", Reason.NO_GPU_FITS)


def test_a_job_that_no_host_has_the_memory_for_ends_with_fewer_frames() -> None:
    small = host("h", ram_total_mib=16_000, ram_free_mib=16_000)
    farm = snapshot([job("long", frames=5000, pixels=960 * 540)], small)
    run = play(farm)
    assert set(run.ended) == {"long"}
    assert run.jobs["long"].stride > 1


# --- faults, work that is under way, stitches ---


def test_a_smaller_plan_is_taken_at_once_and_not_when_all_else_is_done() -> None:
    jobs = [job(f"small-{n}") for n in range(4)]
    large = job("large", cap=40_000_000, train_steps=7000)
    run = play(snapshot([*jobs, large], host("gpu-a")), seconds=train_only)
    assert run.jobs["large"].shrink > 0
    assert run.began["large"] < min(run.ended[one.id] for one in jobs)


def crash_of_trainings(times: int) -> Callable[[Job], tuple[Reason, float] | None]:
    def fault(one: Job) -> tuple[Reason, float] | None:
        fails = one.stage is Stage.TRAINING and one.retries.get(Layer.CODE, 0) < times
        return (Reason.STAGE_CRASHED, 0.25) if fails else None

    return fault


def test_a_training_that_crashed_goes_on_from_its_checkpoint() -> None:
    farm = snapshot([job("one")], host("h"))
    run = play(farm, seconds=train_only, fault=crash_of_trainings(1))
    delay = 1.0  # of the rule, give or take its jitter
    assert run.ended["one"] == pytest.approx(NOW + 100.0 + delay, abs=0.3)
    assert run.jobs["one"].state is JobState.DONE


def test_a_training_that_moves_begins_anew() -> None:
    """Its checkpoint stays on the host that it crashed on twice."""
    farm = snapshot([job("one")], host("h"), host("other"))
    run = play(farm, seconds=train_only, fault=crash_of_trainings(2))
    crashed = 25.0 + 0.25 * 75.0
    delays = 1.0 + 2.0
    assert run.ended["one"] == pytest.approx(NOW + crashed + delays + 100.0, abs=0.9)


def test_a_held_segment_does_not_hold_the_stitch() -> None:
    farm = snapshot([job(f"s{n}") for n in range(3)], host("h"))
    run = play(
        farm,
        seconds=train_only,
        fault=lambda one: (Reason.NO_PARALLAX, 1.0) if one.id == "s1" else None,
    )
    assert run.jobs["s1"].state is JobState.HELD
    assert run.jobs["reef-stitch-a-v1"].state is JobState.DONE


def test_two_auvs_get_their_stitches_and_the_one_across_comes_last() -> None:
    farm = snapshot([job("a1"), job("a2"), job("b1", "b"), job("b2", "b")], host("h"))
    run = play(farm)
    ends = run.ended
    assert ends["reef-stitch-cross-v1"] > max(ends["reef-stitch-a-v1"], ends["reef-stitch-b-v1"])
    assert max(ends, key=lambda name: ends[name]) == "reef-stitch-cross-v1"


def at_work(name: str, elapsed_s: float, fraction: float | None) -> tuple[Job, Underway]:
    promise = Reservation(
        job=name, attempt=5, host="h", slot=SLOT_OF[Stage.TRAINING], gpu="GPU-h", mib=6000
    )
    running = job(
        name, host="h", state=JobState.RUNNING, step=Step.RUN, stage=Stage.TRAINING, attempt=5,
        reservation=promise,
    )  # fmt: skip
    return running, Underway(elapsed_s=elapsed_s, fraction=fraction)


@pytest.mark.parametrize(
    ("elapsed_s", "fraction", "left_s"),
    [(30.0, None, 70.0), (300.0, None, 15.0), (30.0, 0.6, 20.0), (30.0, 0.01, 70.0)],
)
def test_work_under_way_counts_what_is_left_of_it(
    elapsed_s: float, fraction: float | None, left_s: float
) -> None:
    running, underway = at_work("one", elapsed_s, fraction)
    farm = snapshot([running], host("h"), underway={"one": underway})
    needs = Needs()
    assert needs.of(running, farm.hosts[0].gpus[0]).seconds.likely > 0
    scale = 100.0 / needs.of(running, farm.hosts[0].gpus[0]).seconds.likely

    def seconds(one: Job, device: GpuView | None, need: Need) -> float:
        return likely(one, device, need) * (scale if one.stage is Stage.TRAINING else 0.0)

    expected = left_s * scale if fraction == 0.6 else left_s
    assert play(farm, seconds=seconds).ended["one"] == pytest.approx(NOW + expected)


def test_memory_that_an_attempt_uses_is_free_after_it() -> None:
    """The device shows the attempt's own use; the next job fits only without it."""
    running, underway = at_work("one", 10.0, 0.5)
    device = dataclasses.replace(gpu("GPU-h", 8000), free_mib=2000, own_mib={("one", 5): 6000})
    waiting = job("two", host="h", state=JobState.RUNNING, stage=Stage.TRAINING, attempt=4)
    farm = snapshot([running, waiting], host("h", device), underway={"one": underway})
    run = play(farm, seconds=train_only)
    assert run.began["two"] > NOW
    assert run.jobs["two"].state is JobState.DONE


# --- the interval ---

SPAN = Span(low=40.0, likely=60.0, high=150.0)


def test_the_quantiles_are_those_the_span_was_learned_as() -> None:
    assert quantile(SPAN, 0.1) == pytest.approx(40.0)
    assert quantile(SPAN, 0.5) == pytest.approx(60.0)
    assert quantile(SPAN, 0.9) == pytest.approx(150.0)
    steps = [quantile(SPAN, n / 100) for n in range(101)]
    assert steps == sorted(steps)
    assert steps[0] > 0


def test_a_guess_is_wrong_for_all_alike_and_what_was_learned_each_for_itself() -> None:
    device = gpu("GPU-h")
    guessed = Needs().of(job("x"), None)
    learned = dataclasses.replace(guessed, runs=20)
    ones = [job(f"s{n}", stage=Stage.TRAINING) for n in range(9)]
    assert len({drawn(1)(one, device, guessed) for one in ones}) == 1
    assert len({drawn(1)(one, device, learned) for one in ones}) == 9
    assert drawn(1)(ones[0], device, guessed) != drawn(2)(ones[0], device, guessed)


def test_an_outlook_has_an_end_for_every_job_and_the_acquisition_ends_with_the_last() -> None:
    farm = snapshot([job("a1"), job("a2"), job("b1", "b")], host("h"))
    look = look_ahead(farm)
    assert set(look.jobs) == {"a1", "a2", "b1", "reef-stitch-a-v1", "reef-stitch-cross-v1"}
    for eta in look.jobs.values():
        assert NOW < eta.low <= eta.likely <= eta.high
    assert look.end == look.acquisitions["reef"]
    assert look.end is not None
    assert look.end.likely == look.jobs["reef-stitch-cross-v1"].likely
    assert look.end.low < look.end.high
    assert (look.draws, look.share) == (9, 0.8)
    assert look.decisions[0].at == NOW
    on_gpu = [d.gpu is not None for d in look.decisions]
    assert on_gpu.count(True) == 3, "the trainings, and no stitch"


def test_a_stretched_run_is_near_the_future_it_stands_for() -> None:
    """Thirty jobs in line on one GPU: what is before a job is a sum, and sums stretch."""
    farm = snapshot([job(f"s{n:02d}") for n in range(30)], host("h", max_parallel={"train": 1}))

    def train_for(seed: int) -> Seconds:
        def seconds(one: Job, device: GpuView | None, need: Need) -> float:
            if one.stage is not Stage.TRAINING:
                return 0.0
            return drawn(seed)(one, device, dataclasses.replace(need, runs=9))

        return seconds

    trace: list[Decided] = []
    usual = play(farm, seconds=lambda j, d, n: train_only(j, d, n) and likely(j, d, n), trace=trace)
    for seed in range(3):
        truth = play(farm, seconds=train_for(seed)).ended
        guess = stretched(usual, train_for(seed), NOW)
        assert guess.keys() == truth.keys()
        for name, end in truth.items():
            assert guess[name] - NOW == pytest.approx(end - NOW, rel=0.05)


def test_a_long_queue_has_its_interval_too() -> None:
    farm = snapshot([job(f"s{n:02d}") for n in range(80)], host("h"), host("i"))
    look = look_ahead(farm)
    assert look.draws == 9
    last = look.acquisitions["reef"]
    assert last.low < last.likely < last.high
    assert len(look.jobs) == 81


def test_a_quorum_or_a_deadline_makes_the_first_stitch_before_the_end() -> None:
    stitched = "reef-stitch-a-v1"
    farm = snapshot([*(job(f"s{n}") for n in range(3)), job("big", need_mib=900_000)], host("h"))
    assert stitched not in play(farm).ended, "one of its segments waits for ever"
    quorum = dataclasses.replace(farm, sooner={"reef": Sooner(quorum=0.5)})
    ended = play(quorum).ended
    assert ended["s1"] < ended[stitched] < ended["s2"] + 600.0
    late = dataclasses.replace(farm, sooner={"reef": Sooner(deadline_s=1e6)})
    created = max(view.created_at for view in farm.segments["reef"])
    assert play(late).ended[stitched] > created + 1e6


def test_of_too_many_jobs_only_the_next_decision_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dispatcher.core.outlook.MOST_JOBS", 4)
    farm = snapshot([job(f"s{n}") for n in range(5)], host("h"))
    look = look_ahead(farm)
    assert not look.whole
    assert (look.jobs, look.acquisitions, look.end, look.left) == ({}, {}, None, ())
    assert look.at_once == {one.job for one in look.decisions} != set()
    assert look.at_once | {waiting.job for waiting in look.waiting} == {f"s{n}" for n in range(5)}


def test_an_acquisition_with_a_job_that_never_ends_has_no_end() -> None:
    look = look_ahead(snapshot([job("big", need_mib=900_000), job("small")], host("h")))
    assert "reef" not in look.acquisitions
    assert set(look.jobs) == {"small"}
    assert [waiting.job for waiting in look.left] == ["big"]
