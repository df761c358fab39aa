"""Needs: monotone in the work, never below what comparable runs took, safe while runs are few."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.core.expected import TYPICAL, expected
from dispatcher.core.model import Job, JobKind, Reason, Stage, stages_of
from dispatcher.core.need import (
    ENOUGH_RUNS,
    GPU_STAGES,
    KEPT_RUNS,
    OOM_MARGIN,
    RECENT_RUNS,
    WHOLE_DEVICE,
    Need,
    Needs,
    Observation,
)
from dispatcher.core.views import GpuView
from dispatcher.core.work_size import MAX_STRIDE, Shape, measured, ran, shape_of

MIB = 1 << 20
STAGES = [*stages_of(JobKind.RECONSTRUCT), *stages_of(JobKind.STITCH)]


def job(stage: Stage = Stage.TRAINING, **changes: object) -> Job:
    kind = JobKind.STITCH if stage is Stage.STITCH else JobKind.RECONSTRUCT
    made = Job(
        id="j", kind=kind, acquisition="a", name="n", auv="x", created_at=0.0, stage=stage,
        frames=300, pixels=960 * 540, cap=1_000_000, train_steps=7000,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def gpu(name: str = "RTX", total_mib: int = 24_000, kind: str = "cuda") -> GpuView:
    return GpuView(uuid=f"{name}-1", name=name, kind=kind, total_mib=total_mib, free_mib=total_mib)


def run(stage: Stage = Stage.TRAINING, **changes: object) -> Observation:
    made = Observation(
        stage=stage, device="RTX" if stage in GPU_STAGES else "", frames=300, pixels=960 * 540,
        cap=1_000_000, train_steps=7000, wall_s=300.0, cpu_s=330.0, peak_rss_mib=3000.0,
        peak_vram_mib=2000.0, peak_disk_bytes=900 * MIB,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


SHAPES = st.builds(
    Shape,
    frames=st.integers(1, 6000),
    pixels=st.integers(1, 4000 * 3000),
    cap=st.integers(1, 10_000_000),
    train_steps=st.integers(1, 50_000),
)
DIED = st.sampled_from([None, None, None, Reason.GPU_OUT_OF_MEMORY, Reason.OUT_OF_MEMORY])


@st.composite
def runs(draw: st.DrawFn, most: int = 30) -> list[Observation]:
    stage = draw(st.sampled_from(STAGES))
    return [
        run(
            stage,
            **dataclasses.asdict(draw(SHAPES)),
            wall_s=draw(st.floats(0.1, 1e5)),
            cpu_s=draw(st.floats(0.1, 1e5)),
            peak_rss_mib=draw(st.floats(10.0, 1e5)),
            peak_vram_mib=draw(st.none() | st.floats(100.0, 24_000.0)),
            peak_disk_bytes=draw(st.none() | st.integers(0, 10**11)),
            died_of=draw(DIED),
        )
        for _ in range(draw(st.integers(1, most)))
    ]


def shaped(stage: Stage, shape: Shape, **changes: object) -> Job:
    return job(stage, **dataclasses.asdict(shape), **changes)


def device_of(stage: Stage, *, kind: str = "cuda") -> GpuView | None:
    return gpu(kind=kind) if stage in GPU_STAGES else None


def amounts(need: Need) -> tuple[float, ...]:
    span = need.seconds
    return (need.vram_mib, need.ram_mib, need.disk_bytes, span.low, span.likely, span.high)


@given(known=runs(), one=SHAPES, other=SHAPES, kind=st.sampled_from(["cuda", "cpu"]))
@settings(max_examples=60, deadline=None)
def test_more_work_never_needs_less(
    known: list[Observation], one: Shape, other: Shape, kind: str
) -> None:
    stage, needs = known[0].stage, Needs.learned_from(known)
    a, b = dataclasses.asdict(one), dataclasses.asdict(other)
    small = Shape(**{key: min(a[key], b[key]) for key in a})
    large = Shape(**{key: max(a[key], b[key]) for key in a})
    device = device_of(stage, kind=kind)
    less = amounts(needs.of(shaped(stage, small, input_bytes=10), device))
    more = amounts(needs.of(shaped(stage, large, input_bytes=20), device))
    assert all(x <= y for x, y in zip(less, more, strict=True)), (less, more)


@given(known=runs(), kind=st.sampled_from(["cuda", "cpu"]))
@settings(max_examples=60, deadline=None)
def test_no_need_is_below_what_a_recent_comparable_run_took(
    known: list[Observation], kind: str
) -> None:
    """Of device memory at most the whole device: what ran on a model of GPU fits one."""
    stage, needs = known[0].stage, Needs.learned_from(known)
    device = device_of(stage, kind=kind)
    for one in known[-RECENT_RUNS:]:
        need = needs.of(shaped(stage, one.shape), device)
        grown = OOM_MARGIN if one.died_of else 1.0
        if one.died_of is not Reason.GPU_OUT_OF_MEMORY:
            assert need.ram_mib >= one.peak_rss_mib * (grown - 0.001)
        if device is not None and kind == "cuda" and one.peak_vram_mib is not None:
            whole = WHOLE_DEVICE * device.total_mib
            if one.died_of is not Reason.OUT_OF_MEMORY:
                assert need.vram_mib >= min(whole, one.peak_vram_mib * (grown - 0.001))
        if one.died_of is None:
            assert need.disk_bytes >= (one.peak_disk_bytes or 0) - MIB


@given(known=runs(), shape=SHAPES)
@settings(max_examples=40, deadline=None)
def test_equal_needs_answer_alike_and_learning_is_the_same_as_having_learned(
    known: list[Observation], shape: Shape
) -> None:
    stage, device = known[0].stage, device_of(known[0].stage)
    at_once, one_by_one = Needs.learned_from(known), Needs()
    for one in known:
        one_by_one.of(shaped(stage, shape), device)  # what it remembers must not be stale
        one_by_one = one_by_one.learn(one)
    assert at_once == one_by_one
    asked = shaped(stage, shape)
    assert at_once.of(asked, device) == one_by_one.of(asked, device) == at_once.of(asked, device)
    assert at_once.agrees(one_by_one, stage, known[0].device)


ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True)


@given(
    stage=st.sampled_from(STAGES),
    figures=st.lists(
        st.tuples(ANY_FLOAT, ANY_FLOAT, ANY_FLOAT, st.none() | ANY_FLOAT, st.integers()),
        min_size=1, max_size=12,
    ),
    counts=st.integers(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_figures_that_cannot_be_do_no_harm(
    stage: Stage, figures: list[tuple[float, float, float, float | None, int]], counts: int
) -> None:
    known = [
        run(
            stage, wall_s=wall, cpu_s=cpu, peak_rss_mib=rss, peak_vram_mib=vram,
            peak_disk_bytes=disk, frames=counts, pixels=counts, cap=counts, train_steps=counts,
        )
        for wall, cpu, rss, vram, disk in figures
    ]  # fmt: skip
    needs = Needs.learned_from(known)
    for device in (None, gpu(), gpu(kind="cpu")):
        need = needs.of(job(stage), device)
        assert all(math.isfinite(value) and value >= 0 for value in amounts(need))
        assert 0 < need.cpu_cores < 1e31


def test_without_runs_the_first_guess_holds() -> None:
    needs = Needs()
    assert needs.of(job(), gpu()).vram_mib == 6000
    stitch = needs.of(job(Stage.STITCH), gpu())
    assert (stitch.vram_mib, stitch.ram_mib) == (0, 2000), "it uses no device"
    assert needs.of(job(Stage.VALIDATION), gpu()).vram_mib == 6000, "for when it gets there"
    huge = needs.of(job(cap=10_000_000), gpu()).vram_mib
    assert huge > 15_000, "more gaussians than the guess is for"
    on_cpu = needs.of(job(), gpu(kind="cpu"))
    assert on_cpu.vram_mib == on_cpu.ram_mib >= 1500, "the same memory"
    large = job(Stage.FRAME_EXTRACTION, input_bytes=7000 * MIB)
    assert needs.of(large, None).disk_bytes == 7000 * MIB, "frames take no more than the video"
    assert needs.of(job(Stage.TRAINING), None).disk_bytes >= 1000 * MIB, "three checkpoints"
    assert needs.of(job(), gpu()).runs == 0


@given(shape=SHAPES)
def test_the_first_guess_of_ram_holds_the_stack_of_frames(shape: Shape) -> None:
    stack_mib = shape.frames * shape.pixels * 3 / MIB
    for stage in (Stage.COLMAP_RECONSTRUCTION, Stage.TRAINING):
        assert Needs().of(shaped(stage, shape), device_of(stage)).ram_mib > stack_mib


def test_what_is_not_known_of_a_job_counts_as_typical() -> None:
    unknown = dataclasses.asdict(Shape())
    assert Needs().of(job(**unknown), gpu()) == Needs().of(shaped(Stage.TRAINING, TYPICAL), gpu())


def test_a_few_runs_lower_the_guess_by_and_by() -> None:
    needs, seen = Needs(), []
    for _ in range(ENOUGH_RUNS + 1):
        seen.append(needs.of(job(), gpu()).vram_mib)
        needs = needs.learn(run(peak_vram_mib=2000.0))
    assert seen[0] == 6000 and seen == sorted(seen, reverse=True)
    assert seen[1] > 5000 and 2000 < needs.of(job(), gpu()).vram_mib < 2500
    assert needs.of(job(), gpu()).runs == ENOUGH_RUNS + 1


def test_another_model_of_gpu_learns_nothing_from_this_one() -> None:
    needs = Needs.learned_from([run()] * 50)
    assert needs.of(job(), gpu("H100")) == Needs().of(job(), gpu("H100"))


def test_a_run_that_was_wrong_once_is_forgotten_after_newer_ones() -> None:
    wrong, right = run(peak_vram_mib=20_000.0, peak_rss_mib=90_000.0), run()
    needs = Needs.learned_from([*[right] * 10, wrong])
    before = needs.of(job(), gpu())
    assert before.vram_mib >= 20_000 and before.ram_mib >= 90_000
    for _ in range(RECENT_RUNS):
        needs = needs.learn(right)
    after = needs.of(job(), gpu())
    assert after.vram_mib < 2500 and after.ram_mib < 4000


def test_one_large_run_among_many_counts_while_it_is_recent() -> None:
    large = run(peak_vram_mib=9000.0, peak_rss_mib=30_000.0, peak_disk_bytes=8000 * MIB)
    need = Needs.learned_from([*[run()] * 100, large]).of(job(), gpu())
    assert need.vram_mib >= 9000 and need.ram_mib >= 30_000 and need.disk_bytes >= 8000 * MIB
    smaller = Needs.learned_from([*[run()] * 100, large]).of(job(cap=900_000, frames=250), gpu())
    assert smaller.vram_mib < 3000 and smaller.ram_mib < 5000, "less work than it had"


def test_memory_that_ran_out_means_more_was_needed_until_newer_runs_end_well() -> None:
    died = run(peak_vram_mib=7000.0, died_of=Reason.GPU_OUT_OF_MEMORY)
    needs = Needs.learned_from([*[run()] * 10, died])
    assert needs.of(job(), gpu()).vram_mib > 7000
    assert needs.of(job(), gpu()).runs == 10, "it tells nothing about time"
    assert needs.of(job(), gpu(total_mib=7200)).vram_mib <= 7200, "alone on it, it may be tried"
    smaller = needs.of(job(cap=300_000), gpu()).vram_mib
    assert smaller < 7000
    for _ in range(RECENT_RUNS):
        needs = needs.learn(run())
    assert needs.of(job(), gpu()).vram_mib < 2500


def test_a_margin_never_rules_out_the_model_that_the_work_ran_on() -> None:
    needs = Needs.learned_from([run(peak_vram_mib=11_500.0)] * 10)
    assert needs.of(job(), gpu(total_mib=12_000)).vram_mib <= 12_000
    beyond = needs.of(job(cap=4_000_000), gpu(total_mib=12_000)).vram_mib
    assert beyond > 12_000, "nobody has shown that this fits"


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_what_a_job_asked_for_after_failing_goes_before_what_was_learned(kind: str) -> None:
    needs = Needs.learned_from([run()] * 10)
    raised = job(need_ram_mib=50_000, need_mib=9000)
    need = needs.of(raised, gpu(kind=kind))
    assert need.ram_mib == 50_000
    assert need.vram_mib == (9000 if kind == "cuda" else 50_000)
    light = dataclasses.replace(raised, stage=Stage.VALIDATION)
    assert needs.of(light, None).ram_mib < 1000, "it was the stack of frames that did not fit"


def test_only_the_newest_runs_are_kept() -> None:
    needs = Needs.learned_from([run(wall_s=float(n + 1)) for n in range(KEPT_RUNS + 50)])
    (kept,) = needs.runs.values()
    assert len(kept) == KEPT_RUNS and kept[-1].wall_s == KEPT_RUNS + 50
    assert len(next(iter(needs.learn(run()).runs.values()))) == KEPT_RUNS


def test_seconds_are_learned_with_their_spread() -> None:
    few = Needs.learned_from([run(wall_s=200.0)] * 2).of(job(), gpu()).seconds
    many = Needs.learned_from([run(wall_s=100.0 + n) for n in range(100)]).of(job(), gpu()).seconds
    assert few.low < 150 and few.high > 300
    assert 150 < many.low <= many.likely <= many.high < 210
    longer = Needs.learned_from([run(wall_s=100.0)] * 50).of(job(train_steps=14_000), gpu())
    assert 170 < longer.seconds.likely < 210


def test_cores_are_what_runs_kept_busy() -> None:
    busy = run(Stage.COLMAP_RECONSTRUCTION, wall_s=100.0, cpu_s=370.0)
    needs = Needs.learned_from([busy] * ENOUGH_RUNS)
    assert needs.of(job(Stage.COLMAP_RECONSTRUCTION), None).cpu_cores == 3.75


@given(shape=SHAPES, stride=st.integers(1, MAX_STRIDE), shrink=st.integers(0, 2))
def test_a_smaller_plan_needs_less_and_leaves_the_frames_on_the_disk_alone(
    shape: Shape, stride: int, shrink: int
) -> None:
    needs = Needs()
    full = shaped(Stage.TRAINING, shape)
    smaller = dataclasses.replace(full, stride=stride, shrink=shrink)
    assert shape_of(smaller).frames == math.ceil(shape.frames / stride)
    assert needs.of(smaller, gpu()).ram_mib <= needs.of(full, gpu()).ram_mib
    extracted = dataclasses.replace(smaller, stage=Stage.FRAME_EXTRACTION)
    assert shape_of(extracted).frames == shape.frames
    assert needs.of(smaller, gpu()) == needs.of(shaped(Stage.TRAINING, shape_of(smaller)), gpu()), (
        "a run of a smaller plan and a smaller job are the same work"
    )


def test_the_most_ram_of_what_is_still_ahead() -> None:
    needs, wide = Needs(), job(Stage.VALIDATION, frames=3000)
    at_most = needs.most_ram_mib(wide, gpu())
    assert at_most == needs.of(dataclasses.replace(wide, stage=Stage.TRAINING), gpu()).ram_mib
    assert needs.most_ram_mib(dataclasses.replace(wide, stage=Stage.SPLAT_EXPORT), gpu()) < at_most
    assert needs.most_ram_mib(dataclasses.replace(wide, stage=Stage.COMPLETED), gpu()) == 0


def test_a_stage_says_what_its_frames_are() -> None:
    fresh = job(Stage.FRAME_EXTRACTION, frames=0, pixels=0)
    found = measured(fresh, {"frames": 251, "width": 960, "height": 540, "psnr": 1.5})
    assert (found.frames, found.pixels) == (251, 518_400)
    for nonsense in ({}, {"frames": -1, "width": 960}, {"frames": "9"}, {"frames": True}):
        assert measured(found, nonsense) == found
    strided = dataclasses.replace(found, stage=Stage.COLMAP_RECONSTRUCTION, stride=2)
    assert measured(strided, {"frames": 126}) == strided


def test_a_training_that_memory_had_no_room_for_counts_as_the_smaller_one_it_was() -> None:
    large = job(cap=1_000_000, shrink=1)
    assert ran(large, Stage.TRAINING, {}).cap == 600_000
    assert ran(large, Stage.TRAINING, {"cap_by_memory": 250_000}).cap == 250_000
    assert ran(large, Stage.TRAINING, {"cap_by_memory": "nonsense"}).cap == 600_000


def test_expected_costs_are_never_zero() -> None:
    for stage in STAGES:
        cost = expected(stage, Shape(frames=1, pixels=1, cap=1, train_steps=1))
        assert min(dataclasses.astuple(cost)) > 0
